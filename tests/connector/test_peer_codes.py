"""Which codes of peers are believed, and what becomes of the others."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hanse import _codes

from connector.errors import PeerNonsense
from connector.peer_codes import KNOWN, UNKNOWN, read_code
from tests.support.codes import said_in

PAGE = (Path(__file__).parents[2] / "docs" / "data-plane.md").read_text("utf-8")
# Where a connector speaks to others. What it says of itself to its own people is no peer's to say.
SPEAKING = ("connector/dataplane", "connector/usage", "connector/dsp", "policies")
FETCH = {"fetch_too_large", "fetches_max", "not_http", "reader_left", "use_stream"}  # of foreign_fetch, to our people
OURS = {"failed", "four_eyes", "negotiations", "policy_error", "transfers", *FETCH}
HOSTILE: list[Any] = [
    "scope_missing", "queries_max", "other_participant", "peer_unreachable", "address_refused", "undeliverable",
    "not_answered", "request_withdrawn", "../../admin", "<script>", "a\nb", "Revoked", "x" * 5000,
]  # fmt: skip


def test_each_code_that_a_connector_says_to_others_is_known() -> None:
    assert said_in(*SPEAKING) - OURS <= KNOWN
    errors = PAGE[PAGE.index("Before the first byte: `application/problem+json`") : PAGE.index("## Second")]
    rows = "\n".join(line for line in errors.splitlines() if re.match(r"\| \d{3} ", line))
    assert set(re.findall(r"`([a-z]+(?:_[a-z]+)+)`", rows)) <= KNOWN


def test_the_sdk_has_the_same_list() -> None:
    assert (_codes.KNOWN, _codes.UNKNOWN) == (KNOWN, UNKNOWN)


@pytest.mark.parametrize("code", HOSTILE, ids=[str(code)[:20] for code in HOSTILE])
def test_an_unknown_code_is_peer_nonsense_with_its_text_in_the_sentence(code: str) -> None:
    said, sentence = read_code(code, "because\x1b[2J")
    assert said == PeerNonsense.code
    assert sentence.startswith(" ".join(code.split())[:100])
    assert len(sentence) <= 1000
    assert "\x1b" not in sentence
    assert not {"\n", "\x1b"} & set(sentence)
    shown = PeerNonsense(sentence).problem()
    assert (shown["type"], shown["title"], shown["code"], shown["status"]) == (
        "https://w3id.org/hanse/errors/peer_nonsense", "peer nonsense", "peer_nonsense", 502,
    )  # fmt: skip


def test_a_known_code_and_none_stay_as_they_are() -> None:
    assert read_code("min_group_size", "too small") == ("min_group_size", "too small")
    assert read_code("", "no reason") == ("", "no reason")
    assert read_code(None, None) == ("", "")
    assert read_code(["revoked"], "x") == ("", "x")
    assert len(read_code("revoked", "y" * 5000)[1]) == 1000
