"""What an owner says of an agreement (`GET /data/v1/contract`), as far as a question is planned by it. Pure.

Owners write it, so each member has its type here, and whatever has another is no summary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError, field_validator

from connector.json_number import JSON_NUMBER
from policies.evaluation.values import is_whole

_Count = Annotated[int, Field(ge=0, lt=2**63), JSON_NUMBER]
_Tenths = Annotated[int, Field(ge=0, le=90, multiple_of=10), JSON_NUMBER]  # per cent
_Number = Annotated[float, Field(allow_inf_nan=False), JSON_NUMBER]


class Shown(BaseModel):
    """A column."""

    name: str
    type: str

    @field_validator("name", "type")
    @classmethod
    def _is_text(cls, text: str) -> str:
        if not is_whole(text):
            raise ValueError("expected a text of whole characters, came half of one")
        return text

    @field_validator("name")
    @classmethod
    def _is_of_one(cls, name: str) -> str:
        if name == "*":
            raise ValueError("expected the name of one column, came the sign for all of them; its owner must rename it")
        return name


class Axis(BaseModel):
    """A dimension or a measure. `width`: of the bins that a dimension's values are in, where they are."""

    column: str
    width: _Number | None = None


class Share(BaseModel):
    """Which share of rows and of groups an owner says that its grid leaves out: the lower edges, in per cent."""

    rows: _Tenths
    groups: _Tenths


class Grid(BaseModel):
    """What is answered where only figures over groups are."""

    dimensions: tuple[Axis, ...]
    measures: tuple[Axis, ...]
    min_group: _Count
    entity: str | None
    epsilon: _Number | None = None
    left_out: Share | None = None


class Contract(BaseModel):
    """One way in which the agreement may be used."""

    actions: tuple[str, ...]
    purposes: tuple[str, ...]
    columns: tuple[Shown, ...]
    aggregate: Grid | None
    joins: tuple[str, ...] | None
    limits: Mapping[str, Any] = Field(default_factory=dict)
    shares_keys: Any = None  # True alone counts


class Summary(BaseModel):
    """An agreement as its owner sees it now."""

    owner: str
    name: str
    version: str = ""
    rows: _Count | None
    takes_keys: bool = False
    contracts: tuple[Contract, ...] = Field(min_length=1)


def summary_of(wire: Mapping[str, Any]) -> Summary:
    """The summary; ValueError says what does not fit first."""
    try:
        return Summary.model_validate(wire)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
