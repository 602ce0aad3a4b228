"""Errors from what others sent: whatever members a problem object has, and whatever signs its texts hold."""

from __future__ import annotations

import pickle

import pytest
from hanse.errors import AccessRevoked, Broken, HanseError, Refused, Unreachable, error_from_end, error_from_problem


@pytest.mark.parametrize("member", ["message", "self", "kind", "where", "end"])
def test_a_problem_object_may_have_any_member(member: str) -> None:
    """As gateways do: {"message": "no route matched"}."""
    error = error_from_problem(403, {member: "no route matched", "detail": "not here"}, where="owner")
    assert (type(error), str(error), error.facts[member]) == (Refused, "not here", "no route matched")


def test_an_error_that_nobody_catches_does_not_command_the_terminal() -> None:
    written = "closed\r\nfor \x1b]0;owned\x07\x1b[2J\x9b2J\u202e \ud800 ö\n\tend"
    told = "closed\nfor \\u001b]0;owned\\u0007\\u001b[2J\\u009b2J\\u202e \\ud800 ö\n\tend"
    error = error_from_end({"status": "revoked", "reason": written})
    assert isinstance(error, AccessRevoked)
    assert str(error) == told
    assert str(error_from_problem(403, {"detail": written}, where="owner")) == told
    assert str(pickle.loads(pickle.dumps(HanseError(written)))) == told


@pytest.mark.parametrize("code", ["scope_missing", "queries_max", "../x", "x" * 5000])
def test_an_owner_says_no_code_of_ours(code: str) -> None:
    """Our own connector does: code that uses the SDK decides by it."""
    problem = {"code": code, "detail": "because", "title": "t", "type": "https://evil.example/"}
    for error in (error_from_problem(403, problem, where="north"), error_from_end({"status": "refused", **problem})):
        assert error is not None
        assert (error.code, isinstance(error, Refused)) == ("peer_nonsense", True)
        assert str(error).startswith(code[:100])
        assert len(str(error)) < 300
    assert error_from_problem(403, problem, where="south", ours=True).code == code


def test_only_our_own_connector_says_that_a_peer_cannot_be_reached() -> None:
    problem = {"code": "peer_unreachable", "detail": "f"}
    assert type(error_from_problem(502, problem, where="south", ours=True)) is Unreachable
    assert type(error_from_problem(502, problem, where="north")) is Broken
