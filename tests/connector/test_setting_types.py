"""What settings may look like: what does not fit is refused when it is read, with a sentence that names it."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from pydantic import ValidationError
from pydantic_settings import SettingsError

from catalogue.settings import CatalogueSettings
from connector import setting_types
from connector.errors import Invalid
from connector.setting_types import make_folder, unfit
from connector.settings import Settings
from tests.support.own_name import changed

FIT: list[dict[str, str]] = [
    {"PUBLIC_URL": "https://connector.example"},
    {"PUBLIC_URL": "http://127.0.0.1:8080/behind"},
    {"PUBLIC_URL": "https://[::1]:8080/"},
    {"FLIGHT_URL": "grpc+tls://connector.example:8815"},
    {"PARTICIPANT_ID": "did:web:connector.example%3A8080", "TRUST_ANCHOR": "did:web:catalogue.example"},
    {"PARTICIPANT_ID": "did:web:connector.example:8080:north"},
    {"PARTICIPANT_ID": "did:web:clinics.example:17", "TRUST_ANCHOR": "did:web:127.0.0.1%3A9720:17"},
    {"ALLOW_PRIVATE": "10.0.0.0/8, fd00::/8, 127.0.0.1, owner.lan"},
    {"DATABASE_URL": "postgresql+psycopg://u:secret@h/db?connect_timeout=3"},
    {"DATABASE_URL": "sqlite:////tmp/a.db"},
    {"NAME": "clinic-1"},
]
EMPTY = ("CONVERTED_DIR", "CONNECTIONS", "TLS_CERTIFICATE", "TLS_KEY", "ADMIN_TOKEN_FILE", "PUBLIC_URL", "DATABASE_URL")
UNFIT: list[tuple[dict[str, str], str]] = [
    ({"PUBLIC_URL": "connector.example"}, "HANSE_PUBLIC_URL: expected an absolute http(s) URL"),
    ({"PUBLIC_URL": "ftp://connector.example"}, "got 'ftp://connector.example'; write it as https://host/path"),
    ({"PUBLIC_URL": "https://connector.example?x=1"}, "expected a URL without query and fragment"),
    ({"PUBLIC_URL": "https://me:secret@connector.example"}, "got 'https://***@connector.example'; leave out"),
    ({"PUBLIC_URL": "https://connector.example:port"}, "with the port 'port'"),
    ({"PUBLIC_URL": "https://"}, "expected an absolute http(s) URL"),
    ({"PUBLIC_URL": "https://connector.example\r\n"}, "expected a URL in ASCII without blanks, line ends"),
    ({"CATALOGUE_URL": "https://cat\u200b.example"}, "with '\\u200b' at position 11"),
    ({"TRUST_REGISTER": "https://cat.example/ members.jws"}, "with ' ' at position 20"),
    ({"FLIGHT_URL": "grpc+tls://connector.example\t:8815"}, "with '\\t' at position 28"),
    ({"PUBLIC_URL": "http://connector.example", "TLS_CERTIFICATE": "a.pem"}, "to begin with https://"),
    ({"PUBLIC_URL": "HTTP://connector.example", "TLS_CERTIFICATE": "a.pem"}, "to begin with https://"),
    ({"CATALOGUE_URL": "cat.example"}, "HANSE_CATALOGUE_URL"),
    ({"TRUST_REGISTER": "members.jws"}, "HANSE_TRUST_REGISTER"),
    ({"FLIGHT_URL": "https://connector.example"}, "expected an absolute grpc or grpc+tcp or grpc+tls URL"),
    ({"PARTICIPANT_ID": "clinic"}, "HANSE_PARTICIPANT_ID: expected a DID"),
    ({"TRUST_ANCHOR": "catalogue.example"}, "HANSE_TRUST_ANCHOR: expected a DID"),
    ({"TRUST_ANCHOR": "did:web:127.0.0.1:9720"}, "as in did:web:127.0.0.1%3A9720, got 'did:web:127.0.0.1:9720'"),
    ({"TRUST_ANCHOR": "did:web:127.0.0.1:9720:a"}, "as in did:web:127.0.0.1%3A9720:a, got"),
    ({"PARTICIPANT_ID": "did:web:localhost:9720"}, "as in did:web:localhost%3A9720, got"),
    ({"PARTICIPANT_ID": "did:web:%5B%3A%3A1%5D:9720"}, "as in did:web:%5B%3A%3A1%5D%3A9720, got"),
    (
        {"INSECURE_HTTP": "ja"},
        "HANSE_INSECURE_HTTP: Input should be a valid boolean, unable to interpret input, got 'ja'",
    ),
    ({"PUBLIC_PORT": "99999"}, "HANSE_PUBLIC_PORT: Input should be less than or equal to 65535, got"),
    ({"LOG_LEVEL": "loud"}, "got 'loud'"),
    ({"ALLOW_PRIVATE": "10.0.0.0/33"}, "HANSE_ALLOW_PRIVATE: expected networks"),
    ({"DATABASE_URL": "postgres://u:secret@h/db"}, "got a URL that begins with 'postgres://'"),
    ({"DATABASE_URL": "nonsense"}, "without ://"),
    ({"DATABASE_URL": "sqlite:///file:/tmp/a.db?uri=true"}, "write the path alone"),
    ({"WORKERS_MAX": "1", "WORKERS_WARM": "5"}, "HANSE_WORKERS_WARM to be at most HANSE_WORKERS_MAX"),
    ({"NAME": "Clinic"}, "HANSE_NAME: expected a small letter"),
    ({"STATIC_TOKENS": "abc"}, "static_tokens"),
]
SHARED = ("PUBLIC_URL", "PARTICIPANT_ID", "ALLOW_PRIVATE", "DATABASE_URL", "NAME")


def given(monkeypatch: pytest.MonkeyPatch, settings: dict[str, str]) -> list[type[Settings | CatalogueSettings]]:
    for name, value in settings.items():
        monkeypatch.setenv(f"HANSE_{name}", value)
    return [Settings, CatalogueSettings] if set(settings) <= set(SHARED) else [Settings]


@pytest.mark.parametrize("settings", FIT, ids=str)
def test_what_fits_is_taken(monkeypatch: pytest.MonkeyPatch, settings: dict[str, str]) -> None:
    for made in given(monkeypatch, settings):
        made()


@pytest.mark.parametrize(("settings", "said"), UNFIT, ids=lambda value: str(value)[:60])
def test_what_does_not_fit_is_named(monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], said: str) -> None:
    for made in given(monkeypatch, settings):
        with pytest.raises((ValidationError, SettingsError)) as caught:
            made()
        (sentence,) = unfit(caught.value)
        assert said in sentence
        assert "secret" not in sentence


def test_what_is_empty_is_as_if_it_were_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Settings()
    given(monkeypatch, dict.fromkeys(EMPTY, ""))
    assert Settings() == plain


@pytest.mark.parametrize(("flags", "said"), [(os.ST_RDONLY, "Read-only file system"), (0, "Permission denied")])
def test_a_folder_that_takes_nothing_is_told_with_the_reason(
    tmp_path: Path, flags: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose disk was read-only looked for permissions."""
    closed = changed(os, access=lambda *_: False, statvfs=lambda _: SimpleNamespace(f_flag=flags))
    monkeypatch.setattr(setting_types, "os", closed)
    with pytest.raises(Invalid, match=f"HANSE_DATA_DIR: expected a folder to write to, got .* \\({said}\\)"):
        make_folder(tmp_path, "HANSE_DATA_DIR")


def test_scopes_are_types_or_written_whole() -> None:
    whole = "org.eclipse.dspace.dcp.vc.id:urn:uuid:1:read"
    made = Settings(credential_scopes=f"MembershipCredential, {whole}")  # type: ignore[arg-type]  # as from outside
    assert made.credential_scopes == ("org.eclipse.dspace.dcp.vc.type:MembershipCredential:read", whole)
    with pytest.raises(ValidationError, match="MembershipCredential"):
        Settings(credential_scopes="Membership Credential")  # type: ignore[arg-type]  # as from outside


def test_a_secure_token_service_needs_a_secret() -> None:
    with pytest.raises(ValidationError, match="HANSE_STS_SECRET_FILE"):
        Settings(sts_url="https://wallet.example/token")
