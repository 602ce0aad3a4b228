"""The form that a program posts (application/x-www-form-urlencoded), as OAuth 2.0 uses it."""

from __future__ import annotations

from urllib.parse import parse_qsl

from connector.errors import Invalid

_FIELDS_MAX = 16


def parse_form(body: bytes) -> dict[str, str]:
    """Return the fields of a form by name, without empty ones (RFC 6749, 3.2).

    Raises: Invalid for a doubled field, for too many, and for what is no form.
    """
    try:
        pairs = parse_qsl(body.decode(), keep_blank_values=True, strict_parsing=True, max_num_fields=_FIELDS_MAX)
    except ValueError:
        raise Invalid(f"expected a form with at most {_FIELDS_MAX} fields, got something else") from None
    if len(dict(pairs)) != len(pairs):
        raise Invalid("expected each field of the form once, got one repeatedly")
    return {name: value for name, value in pairs if value}
