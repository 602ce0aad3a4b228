"""Strict numbers in JSON bodies: pydantic accepts `true` as 1 and `"0.1"` as 0.1; this validator refuses both.

    rows: Annotated[int, Field(ge=1), JSON_NUMBER] | None = None

Not for query strings, where every value is a text.
"""

from __future__ import annotations

import json
from typing import Any

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError

_SHOWN_CHARACTERS = 40


def _check_number(value: Any) -> Any:
    if isinstance(value, bool | str):
        shown = json.dumps(value)[:_SHOWN_CHARACTERS]
        raise PydanticCustomError(
            "number_expected",
            "expected a number, got {shown}; write a number such as 5 or 0.5, not a text or a truth value",
            {"shown": shown},
        )
    return value


JSON_NUMBER = BeforeValidator(_check_number)
