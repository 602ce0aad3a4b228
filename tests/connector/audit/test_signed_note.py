"""Signed notes, with the example of the C2SP signed-note specification read by the verifier."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hanse.audit.verify import Bad, _check_signature, parse_key

from connector.audit import merkle, signed_note
from tests.connector.audit.support import SIGNER


def test_a_head_of_ours_is_read_back_and_holds_for_the_verifier() -> None:
    text = signed_note.checkpoint(SIGNER, size=7, root=merkle.EMPTY_ROOT)
    assert signed_note.read_head(text) == (SIGNER.name, 7, merkle.EMPTY_ROOT)
    name, key, _ = parse_key(SIGNER.vkey)
    assert _check_signature(text, name, key).split("\n")[:2] == [SIGNER.name, "7"]


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("\n7\n", "\n8\n"),
        lambda text: text.replace("— north", "— south"),
        lambda text: text[:-1],
        lambda text: text.replace("\n\n", "\n"),
        lambda text: text.replace("—", "-"),
        lambda text: text + "extra\n",
        lambda text: text[:-5] + ("A" if text[-5] != "A" else "B") + text[-4:],
    ],
)
def test_a_changed_head_is_refused(change: object) -> None:
    text = signed_note.checkpoint(SIGNER, size=7, root=merkle.EMPTY_ROOT)
    name, key, _ = parse_key(SIGNER.vkey)
    with pytest.raises(Bad):
        _check_signature(change(text), name, key)  # type: ignore[operator]  # a table of functions


def test_another_key_under_the_same_name_is_refused() -> None:
    other = signed_note.Signer(SIGNER.name, Ed25519PrivateKey.generate())
    name, key, _ = parse_key(other.vkey)
    with pytest.raises(Bad):
        _check_signature(signed_note.checkpoint(SIGNER, size=1, root=merkle.EMPTY_ROOT), name, key)


@pytest.mark.parametrize(
    "vkey", ["", "a", "a+b+c", SIGNER.vkey[:-1], SIGNER.vkey.replace("north", "south", 1), "+" + SIGNER.vkey]
)
def test_a_mistyped_key_is_an_error(vkey: str) -> None:
    with pytest.raises(Bad):
        parse_key(vkey)


@pytest.mark.parametrize(
    ("url", "origin"),
    [("https://north.example", "north.example/audit/n"), ("http://127.0.0.1:8080/x", "127.0.0.1:8080/audit/n")],
)
def test_the_origin_is_the_address_without_scheme(url: str, origin: str) -> None:
    assert signed_note.origin_of(url, "n") == origin
