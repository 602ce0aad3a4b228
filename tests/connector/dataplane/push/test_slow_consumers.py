"""Pushes to who takes them slowly, in batches of any size: as readers are served, and with a few pieces in memory."""

from __future__ import annotations

import asyncio
import socket
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import pytest_asyncio

from connector.dataplane.cache.stream_cache import PreparedStreams
from connector.dataplane.push import push_sender
from connector.dataplane.push.push_sender import push
from connector.dataplane.push.target import Target
from connector.errors import PeerUnreachable, Unavailable
from connector.infra.net.http_client import AddressGuard, HttpClient
from tests.support import provider, receiver
from tests.support.provider import OWNER, Provider
from tests.support.receiver import Receiver
from tests.support.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

ALL = 24 * 2**20  # bytes
ROWS = {"a batch": 1, "files": 12}  # what is larger than a slot of a worker's memory comes over its socket, whole
NOW_AND_THEN = 0.01  # seconds between two helpings: all takes two seconds
HELPING = 2**17


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Provider]:
    async with provider.running(tmp_path_factory.mktemp("provider"), rows=10) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def consumer(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Receiver]:
    async with receiver.running(tmp_path_factory.mktemp("consumer"), each=2**27, total=2**28) as made:
        yield made


@pytest.fixture(params=ROWS)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """One row that is one batch, or several that stay in their file until they are sent."""
    return written(tmp_path / "large.parquet", rows=ROWS[request.param])


@pytest.fixture
def files(tmp_path: Path) -> Path:
    return written(tmp_path / "large.parquet", rows=ROWS["files"])


def written(path: Path, *, rows: int, codec: str = "none") -> Path:
    image = pa.array([bytes([number + 1]) * (ALL // rows) for number in range(rows)], pa.binary())
    pq.write_table(pa.table({"id": range(rows), "image": image}), path, compression=codec, use_dictionary=False)
    return path


@dataclass
class Taking:
    """A consumer that takes so many bytes at a time, with a pause after each, and answers when it has all."""

    url: str = ""
    taken: int = 0
    helping: int = HELPING
    pause: float = NOW_AND_THEN


@asynccontextmanager
async def taking(pause: float = NOW_AND_THEN) -> AsyncIterator[Taking]:
    made = Taking(pause=pause)

    async def sink(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        last = b""
        while not last.endswith(b"\r\n0\r\n\r\n") and (data := await reader.read(made.helping)):
            last, made.taken = (last + data)[-8:], made.taken + len(data)
            await asyncio.sleep(made.pause)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        writer.close()

    listening = socket.create_server(("127.0.0.1", 0))
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)
    async with await asyncio.start_server(sink, sock=listening, limit=2**16) as server:
        made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/sink"
        yield made


async def pushed(running: Provider, path: Path, to: Target, *, begun: Callable[[str], object] | None = None) -> None:
    """A file under a new agreement, pushed with a call timeout that no large batch keeps."""
    agreement = await running.agree(name=f"n{path.parent.name[-40:]}", path=path)
    if begun is not None:
        begun(agreement)
    number = agreement.rsplit(":", 1)[-1]
    transfer = await running.store.read(lambda tx: tx.transfers.peek(f"urn:transfer:{number}"))
    assert transfer is not None
    wire = HttpClient(AddressGuard(allow=("127.0.0.1",), insecure_http=True), timeout=1.0, max_bytes=2**20)
    try:
        await push(transfer, to=to, addresses=running.addresses, reads=running.reads, net=wire, owner=OWNER)
    finally:
        await wire.close()


async def test_who_goes_on_taking_has_all_however_long_a_batch_takes(
    running: Provider, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(push_sender, "_TAKING_SECONDS", 1.0)
    async with taking() as slow:
        await pushed(running, path, Target(slow.url))
    assert slow.taken >= ALL
    assert running.of_kind("ReadEnded")[-1].outcome == "ok"


async def test_who_takes_nothing_is_told_from_who_is_not_there(
    running: Provider, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(push_sender, "_TAKING_SECONDS", 0.5)
    async with taking(pause=600) as silent:
        with pytest.raises(PeerUnreachable, match=r"accepted almost no data for 0\.5 s") as raised:
            await pushed(running, path, Target(silent.url))
    assert raised.value.code == "client_stalled"
    ended = running.of_kind("ReadEnded")[-1]
    assert (ended.outcome, ended.code) == ("broken", "client_stalled")


async def test_after_its_end_the_rest_of_a_batch_is_not_taken_for_as_long_as_its_consumer_likes(
    running: Provider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(push_sender, "_TAKING_SECONDS", 0.8)
    path, agreements = written(tmp_path / "large.parquet", rows=1), list[str]()
    async with taking(pause=0.02) as slow:
        sending = asyncio.ensure_future(pushed(running, path, Target(slow.url), begun=agreements.append))
        await until(lambda: slow.taken > 2**20)
        await running.revoke(agreements[0], "the study was closed")
        with pytest.raises(
            PeerUnreachable, match=r"(did not finish reading within|accepted almost no data for) 0\.8 s"
        ):
            await sending
    assert slow.taken < ALL


@pytest.mark.parametrize(("rows", "held"), [(1, ALL), (2, ALL // 2), (12, 0)])
async def test_a_push_holds_a_few_pieces_beside_what_its_worker_sent(
    running: Provider, tmp_path: Path, rows: int, held: int
) -> None:
    path = written(tmp_path / "large.parquet", rows=rows)
    async with taking(pause=0) as sink:
        tracemalloc.start()
        try:
            await pushed(running, path, Target(sink.url))
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert most < held + 6 * 2**20


@pytest.mark.parametrize("kept", [0, 2**28], ids=["the owner's file", "a copy"])
async def test_what_is_pushed_out_of_files_is_what_is_there(consumer: Receiver, tmp_path: Path, kept: int) -> None:
    """Twice: what comes first may leave something prepared."""
    path = written(tmp_path / "large.parquet", rows=ROWS["files"], codec="zstd" if kept else "none")
    prepared = PreparedStreams(tmp_path / "streams", quota=kept)
    async with provider.running(tmp_path, rows=10, prepared=prepared) as made:
        for number in range(2):
            pid = await consumer.transfer(f"urn:uuid:{kept}-{number}")
            shown = consumer.shown(pid)["authorization"]
            await pushed(made, path, Target(consumer.at(pid), shown))
            known = await consumer.known(pid)
            assert known is not None
            assert known.whole
            with pa.ipc.open_stream((await consumer.receiving.file(pid))[0].read_bytes()) as reader:
                got = reader.read_all()
            assert got.equals(pq.read_table(path).cast(got.schema))


async def test_a_file_that_is_cut_short_in_mid_push_is_not_sent_as_if_it_were_whole(
    running: Provider, files: Path
) -> None:
    async with taking(pause=0.02) as slow:
        sending = asyncio.ensure_future(pushed(running, files, Target(slow.url)))
        await until(lambda: slow.taken > 2**20)
        with files.open("r+b") as file:
            file.truncate(2**20)
        with pytest.raises(Unavailable, match="a file of this version has changed since it was registered") as raised:
            await sending
    assert raised.value.code == "version_changed"
    assert running.of_kind("ReadEnded")[-1].outcome == "broken"
