"""Where address and token come from, and that a kept token is the user's alone and goes to one address only."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from hanse import config
from hanse._transport.api import Api
from hanse.errors import BadInput


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for name in ("HANSE_URL", "HANSE_TOKEN", "HANSE_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_arguments_go_before_environment_before_what_was_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    config.keep("http://kept:1", "kept")
    assert config.find_connection().url == "http://kept:1"
    assert config.find_connection().token == "kept"
    monkeypatch.setenv("HANSE_URL", "http://env:2/")
    monkeypatch.setenv("HANSE_TOKEN", "env")
    assert (config.find_connection().url, config.find_connection().token) == ("http://env:2", "env")
    found = config.find_connection(url="http://given:3", token="given")
    assert (found.url, found.token) == ("http://given:3", "given")


def test_with_nothing_given_it_is_the_usual_address_without_a_token() -> None:
    assert config.find_connection() == config.Connection(config.DEFAULT_URL, "", "nowhere")


def test_a_kept_token_never_goes_to_another_address() -> None:
    config.keep("http://kept:1", "kept")
    assert config.find_connection(url="http://other:2").token == ""
    assert config.find_connection(url="http://kept:1/").token == "kept"


def test_what_is_kept_is_readable_by_its_owner_only() -> None:
    file = config.keep("http://kept:1", "kept")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.chmod(0o640)
    with pytest.raises(BadInput, match="chmod 600"):
        config.find_connection()


def test_it_can_be_forgotten() -> None:
    config.keep("http://kept:1", "kept")
    assert config.forget()
    assert not config.forget()
    assert config.find_connection().token == ""


@pytest.mark.parametrize("text", ["", "[]", "{", "null"])
def test_a_damaged_file_is_a_clear_error(text: str) -> None:
    file = config.keep("http://kept:1", "kept")
    file.write_text(text)
    with pytest.raises(BadInput, match="log in again"):
        config.find_connection()


def test_its_place_can_be_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HANSE_CONFIG", str(tmp_path / "mine.json"))
    assert config.keep("http://kept:1", "kept") == tmp_path / "mine.json"


@pytest.mark.parametrize(
    "url",
    ["not a url", "127.0.0.1:8081", "http://", "http://[::1", "http://a:99999", "http://a:x", "ftp://a", "http://ä"],
)
def test_an_address_that_is_none_is_bad_input(url: str) -> None:
    with pytest.raises(BadInput, match="HANSE_URL"):
        Api(url, "token")


@pytest.mark.parametrize("token", ["SECRET\nx", "SECRET x", "SÉCRET", "SECRET\x00", "SECRET\r\nX: 1"])
def test_a_token_that_cannot_be_sent_is_bad_input_and_never_shown(token: str) -> None:
    with pytest.raises(BadInput, match="copy it again") as raised:
        Api("http://127.0.0.1:1", token)
    assert "CRET" not in str(raised.value)
