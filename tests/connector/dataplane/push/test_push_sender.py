"""Pushes from us: to a consumer like ours and to others, for as long as they take, and what a no of theirs means."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import pytest_asyncio

from connector.dataplane.http.vectored_body import Protocol
from connector.dataplane.push import push_sender
from connector.dataplane.push.push_sender import push
from connector.dataplane.push.target import Target
from connector.dsp.messages import address_of
from connector.engine.pool.error_codes import error_of
from connector.errors import (
    Absent,
    AddressRefused,
    ConnectorError,
    Denied,
    EngineFailed,
    Limited,
    PeerFailed,
    PeerRefused,
    PeerUnreachable,
    Unavailable,
)
from connector.infra.net.http_client import AddressGuard, HttpClient
from connector.store.tables import Transfer
from policies.model import Policy
from tests.support import data, receiver
from tests.support.gate import agreement as signed
from tests.support.gate import atom
from tests.support.provider import DATASET, OPEN, OWNER, Provider, running, served, settled
from tests.support.receiver import Receiver
from tests.support.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")
Json = dict[str, Any]
SUMS = signed(atom("ds:minGroupSize", "gteq", "3000"), atom("ds:dimension/gap", "eq", "exact"), action="odrl:use")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def provider(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Provider]:
    async with running(tmp_path_factory.mktemp("provider")) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def consumer(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Receiver]:
    async with receiver.running(tmp_path_factory.mktemp("consumer")) as made:
        yield made


async def sent(
    provider: Provider,
    to: Target,
    *,
    policy: Policy = OPEN,
    name: str = DATASET,
    path: Path | None = None,
    purpose: str = "",
    allow: tuple[str, ...] = ("127.0.0.1",),
    **net: float,
) -> None:
    """All rows of a new agreement, pushed to a target."""
    agreement = await provider.agree(policy, name=name, path=path)
    number = agreement.rsplit(":", 1)[-1]
    transfer = await provider.store.read(lambda tx: tx.transfers.peek(f"urn:transfer:{number}"))
    assert isinstance(transfer, Transfer)
    transfer.purpose = purpose
    wire = HttpClient(AddressGuard(allow=allow, insecure_http=True), timeout=net.get("timeout", 60.0), max_bytes=2**20)
    try:
        await push(transfer, to=to, addresses=provider.addresses, reads=provider.reads, net=wire, owner=OWNER)
    finally:
        await wire.close()


def target(consumer: Receiver, pid: str) -> Target:
    """As the consumer's request names it, at the port where the test serves it."""
    address = address_of(consumer.receiving.address(pid))
    assert address is not None
    return Target.of(address.endpoint.replace("http://127.0.0.1", consumer.url), dict(address.properties))


async def test_what_is_pushed_is_what_is_there(provider: Provider, consumer: Receiver) -> None:
    pid = await consumer.transfer("urn:uuid:all")
    await sent(provider, target(consumer, pid))
    known = await consumer.known(pid)
    assert known is not None
    assert known.whole
    with pa.ipc.open_stream((await consumer.receiving.file(pid))[0].read_bytes()) as reader:
        got = reader.read_all()
    expected = pq.read_table(provider.path)
    assert got.equals(expected.cast(got.schema))
    ended = provider.of_kind("ReadEnded")[-1]
    assert (ended.outcome, ended.detail["rows"]) == ("ok", known.rows)
    started = provider.of_kind("ReadStarted")[-1]
    assert (started.detail["transport"], started.detail["to"]) == ("push", consumer.url)


@pytest.mark.parametrize("purpose", ["dpv:ScientificResearch", "https://w3id.org/dpv#ScientificResearch"])
async def test_a_purpose_may_be_said_in_short(provider: Provider, consumer: Receiver, purpose: str) -> None:
    policy = signed(atom("odrl:purpose", "eq", "https://w3id.org/dpv#ScientificResearch"), action="odrl:use")
    pid = await consumer.transfer(f"urn:uuid:for:{len(purpose)}")
    await sent(provider, target(consumer, pid), policy=policy, purpose=purpose)
    assert await consumer.known(pid) is not None
    assert provider.of_kind("ReadStarted")[-1].purpose == "https://w3id.org/dpv#ScientificResearch"


async def test_a_private_address_is_pushed_to_only_where_the_operator_lists_it(
    provider: Provider, consumer: Receiver
) -> None:
    pid = await consumer.transfer("urn:uuid:private")
    with pytest.raises(AddressRefused, match="HANSE_ALLOW_PRIVATE"):
        await sent(provider, target(consumer, pid), allow=())
    assert not consumer.told(pid)
    assert consumer.receiving.progress(pid) is None


async def test_more_than_the_consumer_takes_is_not_sent_again_and_again(provider: Provider, consumer: Receiver) -> None:
    pid = await consumer.transfer("urn:uuid:little")
    little = target(consumer, pid)
    with pytest.raises(Denied, match="expected at most 1000000 bytes") as raised:
        await sent(provider, Target(little.endpoint, little.authorization, most=1_000_000))
    assert raised.value.code == "push_too_large"
    async with asyncio.timeout(60):
        while not consumer.told(pid):
            await asyncio.sleep(0.01)
    assert consumer.told(pid)[0].code == "cut"


async def test_a_consumer_that_refuses_for_good_is_quoted(provider: Provider, consumer: Receiver) -> None:
    pid = await consumer.transfer("urn:uuid:media")
    await consumer.moved(pid, "STARTED")
    async with scripted(400, b'{"detail": "expected something else\\r\\n2026-01-01 all is well"}') as url:
        with pytest.raises(Denied, match=r"answered 400 .*: expected something else 2026-01-01 all is well$") as raised:
            await sent(provider, Target(url))
    assert raised.value.code == "push_refused"


ANSWERS: dict[int, type[ConnectorError]] = {
    400: Denied, 403: Denied, 409: Denied, 413: Denied, 401: PeerRefused, 404: PeerRefused, 429: PeerRefused,
    500: PeerRefused, 503: PeerRefused, 302: Denied, 308: Denied,
}  # fmt: skip


@pytest.mark.parametrize(("status", "kind"), ANSWERS.items())
async def test_a_no_that_stays_is_told_from_one_that_may_change(
    provider: Provider, status: int, kind: type[ConnectorError]
) -> None:
    async with scripted(status, b"<html>") as url:
        with pytest.raises(kind) as raised:
            await sent(provider, Target(url))
    assert type(raised.value) is kind


@pytest.mark.parametrize("shown", ["Bearer \u00fc", "a\r\nX-Other: y"])
async def test_what_no_header_can_carry_is_not_sent_again_and_again(provider: Provider, shown: str) -> None:
    with pytest.raises(Denied, match="header"):
        await sent(provider, Target("https://sink.example", shown))


async def test_what_a_consumer_did_to_its_transfer_is_waited_for(provider: Provider) -> None:
    """It refuses what is pushed from then on, before its message is here."""
    async with scripted(403, b'{"detail": "the transfer is suspended", "code": "transfer_not_started"}') as url:
        with pytest.raises(PeerRefused, match="answered 403"):
            await sent(provider, Target(url))


FAILURES: dict[str, tuple[ConnectorError, type[ConnectorError]]] = {
    # Its transfer is suspended by then, or pushed.
    "what the party's facts rule out": (Denied("membership is not active", code="not_permitted"), Unavailable),
    "other reads of the agreement": (Limited("1 read is running", code="concurrency"), Unavailable),
    "a store that does not answer": (error_of("store_unreachable", {}), Unavailable),
    "files that were replaced": (error_of("version_changed", {}), Unavailable),
    "too little memory": (error_of("memory_limit", {}), Unavailable),
    "a worker that crashed": (error_of("worker_crashed", {}), EngineFailed),
    "a database that is away": (Unavailable("the database does not answer now"), Unavailable),
    "uses that are spent": (Limited("the agreement allows 1 reads", code="count_spent"), Limited),
    "rows that are spent": (Limited("the agreement's rows are used up", code="quota_spent"), Limited),
    "an agreement that has ended": (Denied("the agreement has ended", code="agreement_ended"), Denied),
    "an agreement that is not known": (Absent("no final agreement", code="no_agreement"), Absent),
}


@pytest.mark.parametrize(("failure", "kind"), FAILURES.values(), ids=FAILURES.keys())
async def test_what_the_agreement_refuses_is_final_and_what_fails_here_is_not(
    provider: Provider, monkeypatch: pytest.MonkeyPatch, failure: ConnectorError, kind: type[ConnectorError]
) -> None:
    async def fails(*_: Any, **__: Any) -> None:
        raise failure

    monkeypatch.setattr(provider.reads.grants, "examine", fails)
    with pytest.raises(kind) as raised:
        await sent(provider, Target("http://127.0.0.1:9/sink"))
    assert (type(raised.value), raised.value.code, raised.value.message) == (kind, failure.code, failure.message)


async def test_a_file_that_was_replaced_is_waited_for_until_it_is_registered_anew(
    provider: Provider, tmp_path: Path
) -> None:
    path = data.parquet(tmp_path / "replaced.parquet", 1_000)
    async with scripted(200, b"") as url:
        await sent(provider, Target(url), name="replaced", path=path)
        data.parquet(path, 1_001)
        with pytest.raises(Unavailable) as raised:
            await sent(provider, Target(url), name="replaced", path=path)
    assert raised.value.code == "version_changed"


async def test_rows_that_leave_only_as_sums_are_never_pushed(provider: Provider) -> None:
    """The gate says so, each time that it is asked."""
    async with scripted(200, b"") as url:
        with pytest.raises(Denied):
            await sent(provider, Target(url), policy=SUMS)


@pytest.mark.parametrize("most", [0, 1_000_000], ids=["at once", "after a part"])
async def test_a_success_before_everything_was_sent_is_none(provider: Provider, tmp_path: Path, most: int) -> None:
    """A sink that does not wait for the end, or a gateway before it, has not got what it acknowledges."""
    path = data.parquet(tmp_path / "large.parquet", 1_000_000)  # 40 MB: more than two kernels and what is between keep
    async with hasty(most) as url:
        with pytest.raises(PeerRefused, match="answered 200 before it had read everything"):
            await sent(provider, Target(url), name=f"hasty_{most}", path=path)
    await settled(provider)
    ended = provider.of_kind("ReadEnded")[-1]
    assert (ended.outcome, ended.code) == ("broken", "peer_refused")


async def test_a_push_that_stops_with_its_connector_is_tried_again(
    provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def draining(wait: Callable[[], Awaitable[Any]]) -> None:
        await wait()
        monkeypatch.setattr(provider.reads, "draining", "")  # as it is again after this test
        await provider.reads.drain("the connector is shutting down", seconds=0)

    async with scripted(200, b"", first=draining) as url:
        with pytest.raises(Unavailable):
            await sent(provider, Target(url))


@pytest.mark.parametrize("away", [0, 3])
async def test_a_push_outlives_its_ticket_as_a_read_does(
    provider: Provider, monkeypatch: pytest.MonkeyPatch, away: int
) -> None:
    """Also where the database does not answer some of its renewals."""
    left, renew = [None] * away, provider.reads.renew

    async def renewed(*given: Any) -> None:
        if left:
            left.pop()
            raise Unavailable("the database does not answer now; try again in a moment")
        await renew(*given)

    async def slow(wait: Callable[[], Awaitable[Any]]) -> None:
        await wait()
        (stream,) = provider.reads.live.values()
        (grant,) = stream.grants
        for later in (40, 80):
            provider.later(later)
            async with asyncio.timeout(40):
                while grant.lease.deadline - grant.lease.clock() < 50:  # renewed since the clock was set forward
                    await asyncio.sleep(0.01)

    monkeypatch.setattr(provider.reads, "renew", renewed)
    monkeypatch.setattr(provider.addresses, "seconds", 60)
    monkeypatch.setattr(push_sender, "_RENEWALS", 200)
    async with scripted(200, b"", first=slow) as url:
        await sent(provider, Target(url))


@pytest.mark.parametrize("status", [200, 500])
async def test_a_consumer_that_makes_up_its_mind_about_all_of_it_keeps_no_place_for_reads(
    provider: Provider, status: int
) -> None:
    async def over() -> None:
        await until(lambda: not provider.reads._running and not provider.reads.live)
        assert not provider.reads.grants._live
        assert provider.of_kind("ReadEnded")[-1].outcome == "ok"

    before = len(provider.of_kind("ReadEnded"))
    async with scripted(status, b"", last=over) as url:
        if status == 200:
            await sent(provider, Target(url))
        else:
            with pytest.raises(PeerRefused, match="answered 500 to the pushed data"):
                await sent(provider, Target(url))
    assert len(provider.of_kind("ReadEnded")) == before + 1


async def test_a_consumer_that_says_nothing_of_all_that_it_took_is_waited_for_as_long_as_a_check_may_take(
    provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [push_sender._answer_seconds(size) for size in (0, 16 * 2**30, 2**40)] == [300.0, 900.0, 900.0]
    monkeypatch.setattr(push_sender, "_ANSWER_SECONDS", 0.1)
    gone = asyncio.Event()
    async with scripted(200, b"", last=gone.wait) as url:
        with pytest.raises(PeerUnreachable, match="did not acknowledge it in time") as raised:
            await sent(provider, Target(url))
        gone.set()
    assert raised.value.code == "no_answer"


ATTEMPTS: dict[str, tuple[Any, int]] = {
    "refused after all was taken": (lambda: scripted(500, b""), 1),
    "broken off in the middle": (lambda: hasty(1_000_000), 1),
    "nobody is there": (lambda: nullcontext("http://127.0.0.1:9/sink"), 0),
}


@pytest.mark.parametrize(("sink", "uses"), ATTEMPTS.values(), ids=ATTEMPTS.keys())
async def test_an_attempt_of_a_push_is_a_use_once_something_of_it_left(
    provider: Provider, sink: Any, uses: int
) -> None:
    async with sink() as url:
        with pytest.raises(PeerFailed):
            await sent(provider, Target(url), policy=signed(atom("odrl:count", "lteq", "3"), action="odrl:use"))
    await settled(provider)
    ended = provider.of_kind("ReadEnded")[-1]
    row = await provider.store.read(lambda tx: tx.agreements.get_grant(ended.agreement))
    assert row is not None
    assert (row.queries, ended.detail.get("use")) == (uses, None if uses else "given_back")


BEARERS: dict[str, tuple[Json, str]] = {
    "a bearer token": ({"authType": "bearer", "authorization": "abc"}, "Bearer abc"),
    "one with its scheme": ({"authType": "bearer", "authorization": "Bearer abc"}, "Bearer abc"),
    "another scheme": ({"authorization": "Basic abc"}, "Basic abc"),
    "as it is": ({"authorization": "abc"}, "abc"),
    "none": ({}, ""),
}


@pytest.mark.parametrize(("properties", "shown"), BEARERS.values(), ids=BEARERS.keys())
async def test_what_is_shown_at_the_address(properties: Json, shown: str) -> None:
    assert Target.of("https://sink.example", properties).authorization == shown


@pytest.mark.parametrize(("said", "most"), [("12", 12), ("", 0), ("-1", 0), ("1e9", 0), ("9" * 30, 0), ("²", 0)])
async def test_the_most_that_is_taken_is_a_number_or_not_said(said: str, most: int) -> None:
    assert Target.of("https://sink.example", {"maxBytes": said}).most == most


@asynccontextmanager
async def hasty(most: int) -> AsyncIterator[str]:
    """A sink that answers 200 and closes once it has read the head and `most` bytes. Its kernel takes little more: all
    that a kernel has taken has been sent."""

    async def sink(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(most)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    listening = socket.create_server(("127.0.0.1", 0))
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)
    async with await asyncio.start_server(sink, sock=listening, limit=2**16) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/sink"


@asynccontextmanager
async def scripted(status: int, body: bytes, *, first: Any = None, last: Any = None) -> AsyncIterator[str]:
    """Somebody else's sink: it takes everything, and answers so. `first` runs with the first piece, `last` last."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if first is not None:
            await first(receive)
        while (await receive()).get("more_body"):
            pass
        if last is not None:
            await last()
        await send({"type": "http.response.start", "status": status, "headers": [(b"connection", b"close")]})
        await send({"type": "http.response.body", "body": body})

    async with served(app, Protocol) as url:  # type: ignore[arg-type]  # an application like any other
        yield f"{url}/sink"
