"""What the SDK tells its own connector of reads that are over: each once, after the end, in nobody's way."""

from __future__ import annotations

import gc
import multiprocessing
import os
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from itertools import takewhile
from typing import Any

import hanse
import pytest
import xxhash
from hanse import errors
from hanse.agreement import Name, TransferAccess
from hanse.audit import read_receipts
from hanse.audit.read_receipts import Receipts
from hanse.client import Dataset, Space

from tests.client.support import Asked, Connector, batch, chunked, complete, connector, ipc
from tests.support.own_name import changed

BATCHES = [batch(1, 2), batch(3)]
END = complete(3, bytes=80, query="r1")
PIECES = ipc(BATCHES, END)
WHOLE = chunked(PIECES, extra="hanse-read: r1\r\n")


def digest(pieces: list[bytes]) -> str:
    """Of what is before the end record."""
    before = b"".join(takewhile(lambda piece: b"hanse.end" not in piece, pieces))
    return f"xxh3:{xxhash.xxh3_128_hexdigest(before)}"


DIGEST = digest(PIECES)
FIRST = digest(ipc(BATCHES[:1], END))
TOLD = {"status": "complete", "rows": 3, "bytes": 80, "digest": DIGEST}


@pytest.fixture(autouse=True)
def teller(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A teller of each test's own, with nothing left of others."""
    monkeypatch.setattr(read_receipts, "_reporter", read_receipts._Reporter())
    monkeypatch.setattr(read_receipts, "_unsupported", set())
    yield
    read_receipts._reporter.leave()


@pytest.fixture
def served() -> Iterator[Connector]:
    with connector() as running:
        running.routes["GET", "/transfers/trf/address"] = {
            "endpoint": f"{running.url}/data/v1", "ticket": "t", "expires": time.time() + 900,
        }  # fmt: skip
        running.routes["GET", "/data/v1"] = WHOLE
        running.routes["POST", "/receipts"] = lambda asked: {"recorded": len(asked.body["ends"]), "unknown": []}
        yield running


@pytest.fixture
def air(served: Connector) -> Iterator[Dataset]:
    with hanse.connect(served.url, "secret") as space:
        yield dataset(space)


def dataset(space: Space) -> Dataset:
    return Dataset(space, TransferAccess(Name("north", "air"), "urn:hanse:north:air", "agr", "trf", ""))


def told(served: Connector, number: int = 1) -> list[dict[str, Any]]:
    """The receipts that have come, once there are so many; without their ids, which are all different, and ages."""
    ends = time.monotonic() + 60
    while len(found := _ends(served)) < number and time.monotonic() < ends:
        time.sleep(0.02)
    assert len({one.pop("id") for one in found}) == len(found)
    assert all(0 <= one.pop("seconds") <= 60 for one in found)
    return found


def _ends(served: Connector) -> list[dict[str, Any]]:
    return [dict(end) for asked in served.asked if asked.path == "/receipts" for end in asked.body["ends"]]


def test_a_whole_read_is_told_with_what_came_and_what_its_owner_said(served: Connector, air: Dataset) -> None:
    assert air.stream().to_arrow().num_rows == 3
    assert told(served) == [
        {"agreement": "agr", "transfer": "trf", "read": "r1", "rows": 3, "digest": DIGEST, "end": TOLD}
    ]
    (asked,) = [one for one in served.asked if one.path == "/receipts"]
    assert asked.headers["authorization"] == "Bearer secret"


def test_a_question_to_one_owner_is_told_and_one_over_many_is_not(served: Connector, air: Dataset) -> None:
    served.routes["POST", "/data/v1/query"] = served.routes["POST", "/queries"] = WHOLE
    air._space.query("SELECT 1").to_arrow()  # our connector asks, and has a record of it
    air.query("SELECT 1").to_arrow()
    assert [one["rows"] for one in told(served)] == [3]


@pytest.mark.parametrize(
    ("answer", "rows", "said"),
    [
        (
            chunked(ipc(BATCHES[:1], {"status": "revoked", "rows": 2})),
            2,
            {"digest": FIRST, "end": {"status": "revoked", "rows": 2, "digest": FIRST}},
        ),
        (chunked(ipc(BATCHES, None)), 3, {"code": "StreamIncomplete"}),
        (
            chunked(ipc(BATCHES, complete(9))),
            3,
            {"digest": DIGEST, "end": {"status": "complete", "rows": 9, "digest": DIGEST}},
        ),
        (
            chunked(ipc(BATCHES, complete(3, digest=FIRST))),
            3,
            {"digest": DIGEST, "end": {"status": "complete", "rows": 3, "digest": FIRST}},
        ),
        (
            chunked(ipc(BATCHES, {"status": "x y", "rows": -1, "digest": 5 * "0" * 99, "bytes": True})),
            3,
            {"digest": DIGEST, "end": {}},
        ),
    ],
    ids=["revoked", "cut", "other rows", "other bytes", "nonsense"],
)
def test_what_did_not_end_well_is_told_as_it_was(
    served: Connector, air: Dataset, answer: Any, rows: int, said: dict[str, Any]
) -> None:
    served.routes["GET", "/data/v1"] = answer
    with pytest.raises(errors.HanseError):
        air.stream(patience=0).to_arrow()
    assert told(served) == [{"agreement": "agr", "transfer": "trf", "read": "", "rows": rows, **said}]


@pytest.mark.parametrize("leave", ["close", "break", "forget"])
def test_a_read_that_its_reader_leaves_is_told_once(served: Connector, air: Dataset, leave: str) -> None:
    stream = air.stream()
    if leave != "forget":
        next(iter(stream))
    if leave == "close":
        stream.close()
        stream.close()
    del stream
    gc.collect()
    rows = 0 if leave == "forget" else 2
    assert told(served) == [{"agreement": "agr", "transfer": "trf", "read": "r1", "rows": rows, "code": "left"}]


def test_each_part_of_a_resumed_read_is_told_once(served: Connector, air: Dataset) -> None:
    places = [{"block": -1, "cursor": f"c{n}"} for n in range(2)]
    cut = chunked(ipc(BATCHES, None, places=places)[:-1], last=False, extra="hanse-read: r1\r\nhanse-snapshot: s\r\n")
    rest = chunked(
        ipc([batch(4)], complete(1), places=[{"block": -1, "cursor": "c2"}]),
        extra="hanse-read: r2\r\nhanse-snapshot: s\r\n",
    )
    served.routes["GET", "/data/v1"] = lambda asked: rest if "after" in asked.query else cut
    assert air.stream().to_arrow().num_rows == 4
    found = told(served, 2)
    assert [(one["read"], one["rows"], "end" in one) for one in found] == [("r1", 3, False), ("r2", 1, True)]


def test_reads_that_end_together_are_told_in_one_call(served: Connector, air: Dataset) -> None:
    for _ in range(20):
        air.stream().to_arrow()
    assert len(told(served, 20)) == 20
    assert served.calls().count("POST /receipts") < 5


def test_a_connector_that_is_busy_is_told_again_with_the_same_ids(
    served: Connector, air: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_receipts, "_PAUSES", (0.01, 0.01))
    served.routes["POST", "/receipts"] = lambda _: (503, {"code": "busy"}) if len(_ends(served)) < 3 else {}
    air.stream().to_arrow()
    ends = time.monotonic() + 60
    while len(_ends(served)) < 3 and time.monotonic() < ends:
        time.sleep(0.01)
    assert len({end["id"] for end in _ends(served)}) == 1


def refused(_: Asked) -> Any:
    return 403, {"code": "scope_missing", "detail": "expected a token with the scope 'consume'"}


@pytest.mark.parametrize("answer", [refused, [], {"unknown": ["x"]}], ids=["no", "odd", "unknown"])
def test_a_connector_that_does_not_take_it_is_warned_of_once_and_never_an_error(
    served: Connector, air: Dataset, answer: Any
) -> None:
    served.routes["POST", "/receipts"] = answer
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for number in range(2):
            assert air.stream().to_arrow().num_rows == 3
            told(served, number + 1)
            _until(lambda: read_receipts._reporter._warned)
    assert [one.category for one in caught if "receipt" in str(one.message)] == [RuntimeWarning]


def _until(holds: Callable[[], bool]) -> None:
    ends = time.monotonic() + 60
    while not holds() and time.monotonic() < ends:
        time.sleep(0.01)
    assert holds()


def test_what_cannot_be_told_takes_little_memory_and_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither an end nor the end of the process waits for a call that has no answer."""
    over, answered = threading.Event(), []

    def silent(*_: Any, **__: Any) -> dict[str, Any]:
        over.wait(120)
        answered.append(1)
        return {}

    monkeypatch.setattr(read_receipts, "_post", silent)
    to = Receipts("http://127.0.0.1:9", "x", {"agreement": "agr", "transfer": "trf"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(20_000):
            to.begin("r").end(code="left")
        assert read_receipts._reporter._ended.qsize() <= read_receipts._WAITING_MAX
        read_receipts._reporter.leave()
    assert not answered
    over.set()
    monkeypatch.setattr(read_receipts, "_reporter", read_receipts._Reporter())


def test_a_connector_that_takes_none_is_told_once_and_nobody_warned(served: Connector, air: Dataset) -> None:
    served.routes["POST", "/receipts"] = (404, {})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        air.stream().to_arrow()
        _until(lambda: bool(read_receipts._unsupported))
        worker = multiprocessing.get_context("fork").Process(target=_reads, args=(air, None))
        worker.start()
        worker.join(60)
        air.stream().to_arrow()
        read_receipts._reporter.leave()
    assert not [one for one in caught if "receipt" in str(one.message)]
    assert len(told(served)) == 1


def test_a_thread_is_there_only_while_it_tells(served: Connector, air: Dataset) -> None:
    """Python 3.12 warns of a fork beside another thread."""
    air.stream().to_arrow()
    told(served)
    time.sleep(1)
    assert read_receipts._reporter._thread is None


def test_what_is_left_is_told_through_the_proxy_of_everything_else(
    served: Connector, air: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", served.url)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    Receipts("http://connector.invalid", "x", {"agreement": "agr", "transfer": "trf"}).begin("r").end(code="left")
    assert [one["code"] for one in told(served)] == ["left"]


def test_many_reads_that_end_with_a_process_keep_it_no_longer_than_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """From 3.12 on no thread is started at the end of a process."""

    now = [0.0]

    def silent(*_: Any, seconds: float) -> Any:
        now[0] += seconds
        raise errors.Unreachable("nobody answers")

    monkeypatch.setattr(read_receipts, "time", changed(time, monotonic=lambda: now[0]))
    monkeypatch.setattr(read_receipts, "_post", silent)
    monkeypatch.setattr(read_receipts._reporter, "_wake", lambda: None)
    to = Receipts("http://127.0.0.1:9", "x", {"agreement": "agr", "transfer": "trf"})
    kept = [to.begin("r") for _ in range(600)]
    with pytest.warns(RuntimeWarning, match="nobody answers"):
        read_receipts._reporter.leave()
    assert (len(kept), now) == (600, [read_receipts._EXIT_SECONDS])


def test_who_interrupts_an_end_sees_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(read_receipts, "_post", interrupted)
    monkeypatch.setattr(read_receipts._reporter, "_wake", lambda: None)
    kept = Receipts("http://127.0.0.1:9", "x", {"agreement": "agr", "transfer": "trf"}).begin("r")
    read_receipts._reporter.leave()
    assert kept.id not in read_receipts._reporter._open


def test_a_process_that_ends_tells_first(served: Connector) -> None:
    code = """
        import hanse, sys
        from hanse.client import Dataset
        from hanse.agreement import Name, TransferAccess
        space = hanse.connect(sys.argv[1], "secret")
        air = Dataset(space, TransferAccess(Name("north", "air"), "urn:hanse:north:air", "agr", "trf", ""))
        kept = iter(air.stream())
        next(kept)
        air.stream().to_arrow()
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code), served.url], check=True, timeout=60)
    assert sorted((one["rows"], one.get("code", "")) for one in told(served, 2)) == [(2, "left"), (3, "")]


def test_an_end_that_nobody_hears_of_keeps_no_process(served: Connector) -> None:
    over = threading.Event()

    def silent(_: Asked) -> Any:
        over.wait(120)

    served.routes["POST", "/receipts"] = silent
    code = """
        import hanse, sys
        from hanse.client import Dataset
        from hanse.agreement import Name, TransferAccess
        space = hanse.connect(sys.argv[1], "secret")
        access = TransferAccess(Name("north", "air"), "urn:hanse:north:air", "agr", "trf", "")
        Dataset(space, access).stream().to_arrow()
    """
    try:  # it ends while the connector is still silent
        subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code), served.url], check=True, timeout=60, capture_output=True
        )
    finally:
        over.set()


def test_a_process_that_waited_in_vain_says_so_and_waits_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """`multiprocessing` has its own end of a process, beside that of the interpreter."""
    over, waited = threading.Event(), []
    monkeypatch.setattr(read_receipts, "_post", lambda *_, **__: over.wait(120) and {})
    Receipts("http://127.0.0.1:9", "x", {"agreement": "agr", "transfer": "trf"}).begin("r").end(code="left")
    thread = read_receipts._reporter._thread
    assert thread is not None
    monkeypatch.setattr(thread, "join", waited.append)
    with pytest.warns(RuntimeWarning, match="could not report every read .* did not answer in time") as caught:
        read_receipts._reporter.leave()
    read_receipts._reporter.leave()
    over.set()
    assert (len(caught), waited) == (1, [read_receipts._EXIT_SECONDS])


def test_a_process_that_ends_says_where_a_second_call_was_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_receipts, "_post", lambda *_, **__: time.sleep(read_receipts._EXIT_SECONDS) or {})
    monkeypatch.setattr(read_receipts._reporter, "_wake", lambda: None)
    for port in (9, 10):
        Receipts(f"http://127.0.0.1:{port}", "x", {"agreement": "agr", "transfer": "trf"}).begin("r").end(code="left")
    with pytest.warns(RuntimeWarning, match="could not report every read .* did not answer in time"):
        read_receipts._reporter.leave()


def _reads(air: Dataset, kept: Any) -> None:
    air.stream().to_arrow()
    if kept is not None:
        kept.close()  # our parent's


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_worker_tells_of_its_own_reads_and_of_no_others(served: Connector, air: Dataset, method: Any) -> None:
    stream = air.stream()
    first = next(batches := iter(stream))
    worker = multiprocessing.get_context(method).Process(
        target=_reads, args=(air, stream if method == "fork" else None)
    )
    worker.start()
    worker.join(60)
    assert worker.exitcode == 0
    assert [one["rows"] for one in told(served)] == [3]
    assert (first.num_rows, sum(one.num_rows for one in batches)) == (2, 1)
    assert [(one["rows"], "end" in one) for one in told(served, 2)] == [(3, True), (3, True)]


def test_a_bare_fork_tells_of_nothing_that_was_before(served: Connector, air: Dataset) -> None:
    air.stream().to_arrow()
    child = os.fork()
    if not child:
        read_receipts._reporter.leave()
        os._exit(0)
    os.waitpid(child, 0)
    assert len(told(served)) == 1
    time.sleep(0.5)
    assert len(_ends(served)) == 1
