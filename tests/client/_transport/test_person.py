"""A person's token while the provider cannot be reached, and its file."""

from __future__ import annotations

import json
import os
import pickle
import time
from pathlib import Path
from typing import Any

import pytest
from hanse import config
from hanse._transport.login_file import write_login
from hanse._transport.person import PersonToken, exchange_id_token
from hanse._transport.provider import ProviderConnection, can_open_browser
from hanse.errors import Broken, Unauthenticated, Unreachable

from tests.support.ports import free_range


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "client.json"
    monkeypatch.setenv("HANSE_CONFIG", str(place))
    return place


def save(file: Path, **changes: str) -> None:
    now, port = time.time(), free_range(1)
    saved = {
        "url": "http://127.0.0.1:1", "token": "good", "ends_at": str(now + 600), "renew_at": str(now + 500),
        "issuer": f"http://127.0.0.1:{port}", "client_id": "c", "refresh_token": "r",
    }  # fmt: skip
    write_login(file, saved | changes)


def never(_: Any) -> Any:
    raise AssertionError("expected no exchange")


def test_a_token_that_lasts_is_taken_without_a_call(file: Path) -> None:
    save(file)
    token = config.find_connection().token
    assert isinstance(token, PersonToken)
    assert token.current(never) == "good"
    assert b"good" not in pickle.dumps(token)


def test_a_token_is_used_to_its_end_while_the_provider_is_down(file: Path) -> None:
    save(file, renew_at="0")
    assert PersonToken(file).current(never) == "good"
    save(file, renew_at="0", ends_at="1")
    with pytest.raises(Unreachable):
        PersonToken(file).current(never)


def test_a_token_that_the_connector_refused_is_not_used_again(file: Path) -> None:
    save(file)
    token = PersonToken(file)
    token.drop(token.current(never))
    with pytest.raises(Unreachable):
        token.current(never)
    save(file, token="of another process")  # no secret
    assert token.current(never) == "of another process"


def test_after_a_logout_of_another_process_the_login_has_ended(file: Path) -> None:
    save(file)
    token = PersonToken(file)
    config.forget()
    with pytest.raises(Unauthenticated, match="hanse login"):
        token.current(never)


def test_a_login_without_a_refresh_token_is_used_to_its_end(file: Path) -> None:
    save(file, refresh_token="")
    assert config.find_connection().token == "good"


def test_a_draft_in_the_files_place_is_not_followed(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("mine")
    file.with_name(f".{file.name}.{os.getpid()}").symlink_to(other)
    save(file)
    assert (other.read_text(), json.loads(file.read_text())["token"]) == ("mine", "good")


@pytest.mark.parametrize("answer", [None, [], {}, {"access_token": "a b", "expires_in": 5}, {"access_token": "t"}])
def test_an_unfit_answer_of_the_connector_is_broken(answer: Any) -> None:
    with pytest.raises(Broken):
        exchange_id_token("a.b.c", lambda _: answer)


@pytest.mark.parametrize("issuer", ["http://idp.example", "file:///etc/passwd", "javascript:alert(1)", ""])
def test_an_address_without_tls_is_not_used(issuer: str) -> None:
    with pytest.raises(Broken, match="https"):
        ProviderConnection(issuer, "c")


def test_without_a_display_there_is_no_browser() -> None:
    assert not can_open_browser({}, "linux")
