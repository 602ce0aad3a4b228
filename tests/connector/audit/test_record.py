"""Canonical JSON against the examples of RFC 8785 and against the verifier's own writer; commitments."""

from __future__ import annotations

import base64
import json
from hashlib import sha256
from typing import Any

import pytest
from hanse.audit import verify
from hypothesis import given
from hypothesis import strategies as st

from connector.audit.record import canonical, make_record

NUMBERS = [  # RFC 8785 appendix B, and the borders between its forms
    (0.0, "0"),
    (-0.0, "0"),
    (5e-324, "5e-324"),
    (1.7976931348623157e308, "1.7976931348623157e+308"),
    (9007199254740992.0, "9007199254740992"),
    (295147905179352830000.0, "295147905179352830000"),
    (1e21, "1e+21"),
    (999999999999999700000.0, "999999999999999700000"),
    (1e-6, "0.000001"),
    (1e-7, "1e-7"),
    (333333333.33333329, "333333333.3333333"),
    (1.5, "1.5"),
    (-1.25e-9, "-1.25e-9"),
    (100.0, "100"),
]
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=4)
    ),
    max_leaves=12,
)


@pytest.mark.parametrize(("value", "text"), NUMBERS)
def test_numbers_are_written_as_rfc_8785_writes_them(value: float, text: str) -> None:
    assert canonical(value) == text
    assert verify.canonical(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"\u20ac": 1, "\r": 2, "\ufb33": 3, "1": 4, "\U0001f600": 5, "\x80": 6, "\xf6": 7},
         '{"\\r":2,"1":4,"\x80":6,"\xf6":7,"\u20ac":1,"\U0001f600":5,"\ufb33":3}'),  # RFC 8785 §3.2.3
        ("\u20ac$\x0f\nA'B\"\\\\\"/", '"\u20ac$\\u000f\\nA\'B\\"\\\\\\\\\\"/"'),
        ([True, None, {"b": [], "a": {}}], '[true,null,{"a":{},"b":[]}]'),
    ],
)  # fmt: skip
def test_keys_and_strings_are_written_as_rfc_8785_writes_them(value: Any, text: str) -> None:
    assert canonical(value) == text
    assert verify.canonical(value) == text


@given(JSON)
def test_writer_and_verifier_write_the_same_text(value: Any) -> None:
    text = canonical(value)
    assert verify.canonical(json.loads(text)) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2**53 + 1, '"9007199254740993"'),
        (float("nan"), '"nan"'),
        (float("inf"), '"inf"'),
        ("\ud800", '"?"'),
        (b"x", "\"b'x'\""),
        ({"\ud800": 1, "?": 2, 1: 3, "1": 4}, '{"1":3,"1 (2)":4,"?":1,"? (2)":2}'),
    ],
)
def test_what_json_cannot_hold_becomes_text_because_a_log_must_not_stop(value: Any, text: str) -> None:
    assert canonical(value) == text


def test_a_body_that_is_too_long_for_an_auditor_is_cut_where_it_is_long_and_says_so() -> None:
    long = {"policy": ["x" * 100] * 20_000, "rows": 7, "name": "n" * 5_000}
    body = {"kind": "ReadStarted", "actor": "did:web:north", "reason": "r" * 800_000, "detail": long}
    told = json.loads(make_record(7, 1_700_000_000.75, body, b"s" * 16).text)
    assert (told["kind"], told["actor"], told["detail"]["rows"]) == ("ReadStarted", "did:web:north", 7)
    digest = sha256(json.dumps(long["policy"], separators=(",", ":")).encode()).hexdigest()
    assert told["detail"]["policy"] == f"(cut: 2060001 bytes of JSON, SHA-256 {digest})"
    assert told["reason"].startswith("r" * 1000 + "... (cut: 800002 bytes of JSON, SHA-256 ")
    whole = {"kind": "ReadStarted", "reason": "r" * 400_000}
    assert json.loads(make_record(7, 1_700_000_000.75, whole, b"s" * 16).text)["reason"] == whole["reason"]


def test_a_leaf_is_a_salted_commitment_without_any_content() -> None:
    record = make_record(7, 1_700_000_000.75, {"kind": "ReadStarted", "actor": "did:web:north"}, b"s" * 16)
    assert json.loads(record.text) == {
        "actor": "did:web:north",
        "kind": "ReadStarted",
        "time": "2023-11-14T22:13:20.750Z",
    }
    commitment = base64.b64encode(sha256(b"s" * 16 + record.text.encode()).digest()).decode()
    assert record.leaf.decode() == f'{{"c":"{commitment}","t":"ReadStarted","ts":1700000000,"v":1}}'
