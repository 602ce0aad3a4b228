"""The client of an issuer goes on with what it knows while the issuer gives nothing new."""

from __future__ import annotations

import time
from typing import Any, cast

import pytest

from connector.errors import Unavailable
from connector.identity.openid import issuer_client
from connector.identity.openid.issuer_client import IssuerClient
from connector.infra.net.http_client import HttpClient
from tests.support.openid import CLIENT, ISSUER, MemoryProvider
from tests.support.own_name import changed

HOUR = 3_600.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1_000.0]
    monkeypatch.setattr(issuer_client, "time", changed(time, monotonic=lambda: now[0]))
    return now


def make_client(idp: MemoryProvider) -> IssuerClient:
    return IssuerClient(cast("HttpClient", idp), name="clinic", issuer=ISSUER, client_id=CLIENT)


def discoveries(idp: MemoryProvider) -> int:
    return idp.asked.count("/.well-known/openid-configuration")


@pytest.mark.parametrize("fault", [{"down": True}, {"metadata": {"issuer": "https://other.example"}}])
async def test_a_failed_reload_ends_nothing_while_old_metadata_is_at_hand(
    clock: list[float], fault: dict[str, Any]
) -> None:
    idp = MemoryProvider()
    client = make_client(idp)
    first = await client.app()
    for name, value in fault.items():
        setattr(idp, name, value)
    clock[0] += HOUR + 1
    assert await client.app() is first
    assert (await client.decode(idp.logout_token()))["sub"] == "ada"
    tried = discoveries(idp)
    clock[0] += 59
    assert await client.app() is first
    assert discoveries(idp) == tried  # not at each login
    idp.down, idp.metadata = False, {}
    clock[0] += 2
    assert await client.app() is not first


async def test_old_metadata_counts_for_a_day(clock: list[float]) -> None:
    idp = MemoryProvider()
    client = make_client(idp)
    first = await client.app()
    idp.down = True
    clock[0] += 23 * HOUR
    assert await client.app() is first
    clock[0] += 2 * HOUR
    with pytest.raises(Unavailable):
        await client.app()


async def test_an_issuer_that_never_answered_is_busy() -> None:
    idp = MemoryProvider()
    idp.down = True
    with pytest.raises(Unavailable):
        await make_client(idp).app()
