"""The fields of a posted form."""

from __future__ import annotations

from urllib.parse import parse_qs

from fastapi import Request

from connector.errors import Invalid

FIELDS_MAX = 50


async def read_fields(request: Request) -> dict[str, str]:
    """Return the fields of a posted form, stripped; the last of several. Raises: Invalid for too many."""
    text = (await request.body()).decode("utf-8", "replace")
    try:
        fields = parse_qs(text, keep_blank_values=True, max_num_fields=FIELDS_MAX)
    except ValueError as error:
        raise Invalid(f"expected a form with at most {FIELDS_MAX} fields") from error
    return {name: values[-1].strip() for name, values in fields.items()}
