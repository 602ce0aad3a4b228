"""Tokens that a secure token service elsewhere signs for us."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

from connector.errors import AddressPrivate, PeerNonsense, PeerUnreachable, Unavailable
from connector.identity.credentials.remote_wallet import RemoteWallet
from tests.connector.identity.credentials.world import HOLDER, US, World

STS = "https://wallet.example/token"
SCOPES = ["org.eclipse.dspace.dcp.vc.type:A:read", "org.eclipse.dspace.dcp.vc.type:B:read"]


class Service(World):
    """A secure token service that keeps what it was asked."""

    async def call(self, method: str, url: str, *, body: bytes | None = None, **more: Any) -> Any:
        self.form = {name: value[0] for name, value in parse_qs((body or b"").decode()).items()}
        return await super().call(method, url, body=body, **more)


def wallet(folder: Path, page: Any, secret: str = "s3cret\n") -> tuple[RemoteWallet, Service]:
    file, service = folder / "secret", Service()
    file.write_text(secret)
    service.pages[STS] = page
    return RemoteWallet(service, url=STS, client=US, secret_file=file), service  # type: ignore[arg-type]  # a fake


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        ({}, {}),
        ({"scopes": SCOPES}, {"bearer_access_scope": " ".join(SCOPES)}),
        ({"token": "theirs"}, {"token": "theirs"}),
        ({"token": "theirs", "scopes": SCOPES}, {"token": "theirs"}),
    ],
)
async def test_a_token_is_asked_for_one_receiver_with_scopes_or_a_token(
    tmp_path: Path, asked: dict[str, Any], sent: dict[str, str]
) -> None:
    ours, service = wallet(tmp_path, {"access_token": "a.b.c", "expires_in": 300})
    assert await ours.sign(HOLDER, **asked) == "a.b.c"
    known = {"grant_type": "client_credentials", "client_id": US, "client_secret": "s3cret", "audience": HOLDER}
    assert service.form == {**known, **sent}


@pytest.mark.parametrize(
    "page",
    [401, 404, 500, 302, b"<html>", b"[" * 9_000, [], {}, {"access_token": 5}, {"access_token": "opaque"},
     {"access_token": "a.b.c\r\nx: y"}, AddressPrivate("10.0.0.1"), PeerUnreachable("gone"), PeerNonsense("endless")],
)  # fmt: skip
async def test_a_service_that_signs_nothing_ends_no_negotiation(tmp_path: Path, page: Any) -> None:
    with pytest.raises(Unavailable) as caught:
        await wallet(tmp_path, page)[0].sign(HOLDER)
    assert "s3cret" not in caught.value.message + caught.value.private


@pytest.mark.parametrize("secret", ["", "\n", "x" * 5_000, "é"])
async def test_a_secret_that_cannot_be_read_is_named(tmp_path: Path, secret: str) -> None:
    ours, service = wallet(tmp_path, {"access_token": "a.b.c"}, secret)
    with pytest.raises(Unavailable, match="HANSE_STS_SECRET_FILE"):
        await ours.sign(HOLDER)
    assert service.calls == []
