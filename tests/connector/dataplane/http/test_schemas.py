"""An envelope's size in memory is bounded, too, before it is read."""

from __future__ import annotations

import json

import pytest

from connector.dataplane.http.schemas import parse_envelope
from connector.errors import Invalid


def test_millions_of_empty_lists_are_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the limit of bytes they take seconds and a gigabyte, before anything is known of the sender's places."""
    monkeypatch.setattr("connector.dataplane.http.schemas.strictjson.loads", lambda _: pytest.fail("read"))
    for part in (b"[],", b'{"a":{}},', b"1,"):
        with pytest.raises(Invalid, match="parts"):
            parse_envelope(b'{"sql": "SELECT 1", "keys": [' + part * 400_000 + b"1]}")


def test_the_largest_envelope_that_fits_has_few_enough_parts() -> None:
    key = {"name": "k", "columns": [f"c{n}" for n in range(64)], "arrow": "QUFB" * 500_000}
    envelope = {"sql": "," * 65_536, "keys": [key] * 8, "tickets": ["t"] * 16, "application": "{" * 1024}
    assert len(parse_envelope(json.dumps(envelope).encode()).keys) == 8
