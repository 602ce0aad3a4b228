"""The form that a program posts."""

from __future__ import annotations

import pytest

from connector.errors import Invalid
from connector.infra.http.form import parse_form


def test_fields_come_by_name_and_empty_ones_are_left_out() -> None:
    assert parse_form(b"grant_type=a%3Ab&scope=x+y&job=") == {"grant_type": "a:b", "scope": "x y"}
    assert parse_form(b"") == {}


@pytest.mark.parametrize(
    "body", [b"a=1&a=1", b"a=1&a=", b"a=1&%61=2", b"a", b"\xff=1", b"&".join(b"f%d=1" % number for number in range(17))]
)
def test_a_doubled_field_too_many_and_what_is_no_form_are_refused(body: bytes) -> None:
    with pytest.raises(Invalid, match="expected"):
        parse_form(body)
