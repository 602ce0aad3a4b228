"""The lean reader and the stream on it: every framing gives the same rows, everything cut or wrong is a typed error."""

from __future__ import annotations

import gc
import mmap
import os
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hanse import errors
from hanse._transport import http_stream
from hanse._transport.api import post_small
from hanse._transport.http_stream import HttpRequest
from hanse.retry import Patience
from hanse.stream import Stream

from tests.client.support import SCHEMA, Raw, batch, chunked, complete, connector, dripping, ipc, recut
from tests.support.own_name import changed
from tests.support.stalls import in_real_time

BATCHES = [batch(1, 2, 3), batch(*range(10, 500)), batch(7)]
ROWS = sum(one.num_rows for one in BATCHES)
WHOLE = ipc(BATCHES, complete(ROWS, policy=["row filter"], owners=[{"owner": "north", "rows": ROWS}]))


def read(answer: Any, *, idle_seconds: float = 60.0, **options: Any) -> Stream:
    with connector({("GET", "/rows"): answer}) as served:
        stream = Stream(
            http_stream.open_stream(HttpRequest("GET", f"{served.url}/rows", idle_seconds=idle_seconds)), **options
        )
        stream.to_arrow()
        return stream


@pytest.mark.parametrize("size", [1, 2, 7, 8, 64, 1000, 10**6])
def test_every_framing_gives_the_same_rows(size: int) -> None:
    assert read(chunked(recut(WHOLE, size))).to_arrow() == pa.Table.from_batches(BATCHES)


def test_a_batch_in_one_chunk_is_read_without_a_copy() -> None:
    big = pa.record_batch([pa.array(range(300_000), pa.int64()), pa.nulls(300_000, pa.string())], schema=SCHEMA)
    before = pa.total_allocated_bytes()
    with connector({("GET", "/"): chunked(ipc([big], complete(300_000)))}) as served:
        stream = Stream(http_stream.open_stream(HttpRequest("GET", served.url)))
        got = next(iter(stream))
        held = pa.total_allocated_bytes() - before
        stream.close()
    assert got == big
    assert held < 1.2 * big.nbytes


@pytest.mark.parametrize("huge", [True, False])
def test_memory_for_what_stays_is_apart_and_each_goes_by_itself(monkeypatch: pytest.MonkeyPatch, huge: bool) -> None:
    if not huge:
        monkeypatch.setattr(http_stream, "mmap", changed(mmap, without=["MADV_HUGEPAGE"]))
    sizes = [0, 1, 65, 3_000_000, 2 * 2**20, 100_000_000, 5]
    buffers = [http_stream.allocate_lasting(size) for size in sizes]
    for number, buffer in enumerate(buffers):
        memoryview(buffer).cast("B")[:] = bytes([number]) * buffer.size
    assert [buffer.to_pybytes() for buffer in buffers] == [bytes([n]) * size for n, size in enumerate(sizes)]
    assert all(buffer.address % 64 == 0 for buffer in buffers if buffer.size)
    held, middle = pa.system_memory_pool().bytes_allocated(), buffers[5].address + sizes[5] // 2
    assert _mapped(middle)
    del buffers[5]
    if huge:
        assert not _mapped(middle)
    else:  # the C library may keep what is free for itself
        assert pa.system_memory_pool().bytes_allocated() == held - sizes[5]


def _mapped(address: int) -> bool:
    """Whether there is memory at an address."""
    spans = (line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines())
    return any(int(first, 16) <= address < int(end, 16) for first, end in spans)


def test_the_end_record_says_how_it_was() -> None:
    stream = read(chunked(WHOLE))
    assert stream.end["status"] == "complete"
    assert (stream.rows, stream.policy, stream.owners) == (ROWS, ["row filter"], [{"owner": "north", "rows": ROWS}])


@pytest.mark.parametrize("name", ["policy", "owners", "missing"])
@pytest.mark.parametrize("value", [None, 5, "all", {"a": 1}, [5]], ids=str)
def test_lists_of_the_end_record_that_are_none_are_broken(name: str, value: Any) -> None:
    stream = read(chunked(ipc(BATCHES, complete(ROWS, **{name: value}))))
    with pytest.raises(errors.Broken, match=f"expected a list of {name}"):
        getattr(stream, name)


@pytest.mark.parametrize(
    ("end", "told"),
    [(complete(ROWS), "complete"), (complete(9999), "failed"), ({"status": "complete"}, "failed"), (None, "failed")],
)
def test_a_stream_is_shown_as_complete_only_where_it_was(end: Any, told: str) -> None:
    with connector({("GET", "/"): chunked(ipc(BATCHES, end))}) as served:
        stream = Stream(http_stream.open_stream(HttpRequest("GET", served.url)))
        with suppress(errors.HanseError):
            stream.to_arrow()
    assert repr(stream) == f"<Stream, columns age, name, {told}, {ROWS} rows read>"


def test_chunk_extensions_trailers_and_interim_answers_are_passed_over() -> None:
    data = chunked(WHOLE).data
    head, _, body = data.partition(b"\r\n\r\n")
    size, _, rest = body.partition(b"\r\n")
    odd = head + b"\r\n\r\n" + size + b";name=value\r\n" + rest[: -len(b"\r\n")] + b"trailer: x\r\n\r\n"
    assert read(Raw(b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + odd)).rows == ROWS


CUT: list[tuple[str, Any, type[errors.HanseError], str]] = [
    ("no end record", chunked(ipc(BATCHES, None)), errors.StreamIncomplete, "expected an end record, got none"),
    ("cut at a batch, cleanly framed", chunked(WHOLE[:1]), errors.StreamIncomplete, "stopped after 3 rows"),
    ("cut in a batch, cleanly framed", chunked([*WHOLE[:1], WHOLE[1][:100]]), errors.Broken, "expected an Arrow"),
    ("connection lost at a chunk", chunked(WHOLE[:2], last=False), errors.Unreachable, "closed the connection"),
    ("connection lost in a chunk", Raw(chunked(WHOLE).data[:1500]), errors.Unreachable, "closed the connection"),
    ("fewer rows than the end says", chunked(ipc(BATCHES, complete(9999))), errors.StreamIncomplete, "9999 rows"),
    ("an end record that is no JSON", chunked([piece.replace(b'"status"', b'"status ') for piece in WHOLE]),
     errors.Broken, "end record"),
    ("revoked", chunked(ipc(BATCHES[:1], {"status": "revoked", "reason": "no more", "rule": "/permission/0"})),
     errors.AccessRevoked, "no more"),
    ("quota", chunked(ipc(BATCHES[:1], {"status": "quota"})), errors.QuotaSpent, "ended early: quota"),
    ("expired", chunked(ipc([], {"status": "lease_expired"})), errors.AccessExpired, "lease_expired"),
    ("no more permitted", chunked(ipc(BATCHES[:1], {"status": "refused", "code": "not_in_force", "reason": "over"})),
     errors.Refused, "over"),
    ("failed", chunked(ipc([], {"status": "error", "code": "out_of_memory"})), errors.StreamFailed, "ended early"),
    ("a new status", chunked(ipc([], {"status": "later"})), errors.StreamFailed, "later"),
    ("not Arrow", chunked([b"hello" * 100]), errors.Broken, "without its marker"),
    ("nothing", chunked([]), errors.Broken, "expected an Arrow stream"),
    ("JSON instead", chunked([b"{}"], media="application/json"), errors.Broken, "expected an Arrow stream"),
    ("packed again", chunked(WHOLE, extra="content-encoding: gzip\r\n"), errors.Broken, "compressed"),
    ("ends with the connection", Raw(b"HTTP/1.1 200 OK\r\ncontent-type: application/vnd.apache.arrow.stream\r\n\r\n"),
     errors.Broken, "chunked"),
    ("redirect", Raw(b"HTTP/1.1 302 Found\r\nlocation: /x\r\ncontent-length: 0\r\n\r\n"), errors.Broken, "redirect"),
    ("another protocol", Raw(b"SSH-2.0-OpenSSH_9\r\n\r\n"), errors.Broken, "does not speak HTTP"),
    ("a huge chunk", Raw(chunked([]).data[: -len(b"0\r\n\r\n")] + b"ffffffff\r\n"), errors.Broken, "more than"),
    ("a huge message", chunked([*WHOLE[:1], b"\xff\xff\xff\xff\xff\xff\xff\x7f"]), errors.Broken, "of at most"),
    ("a status of other digits", Raw(b"HTTP/1.1 2\xb20 OK\r\n\r\n"), errors.Broken, "does not speak HTTP"),
    ("no chunk size", Raw(chunked([]).data[: -len(b"0\r\n\r\n")] + b"-1\r\n"), errors.Broken, "size of a chunk"),
    ("a longer chunk than said", Raw(chunked(WHOLE[:1]).data.replace(b"0\r\n\r\n", b"xx")), errors.HanseError, "."),
    ("endless trailers", Raw(chunked(WHOLE[:2]).data[: -len(b"\r\n")] + b"a: b\r\n" * 200),
     errors.Broken, "after its last"),
    ("endless informational answers", Raw(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 20), errors.Broken, "informational"),
    ("an endless head", Raw(b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 20_000), errors.Broken, "head of more than"),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "kind", "text"), [case[1:] for case in CUT], ids=[case[0] for case in CUT])
def test_whatever_is_not_a_whole_stream_is_a_typed_error(answer: Raw, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        read(answer)


def test_rows_that_came_before_the_end_are_not_lost() -> None:
    answer = chunked(ipc(BATCHES, {"status": "revoked", "reason": "no more", "rule": "/permission/0", "rows": ROWS}))
    seen: list[pa.RecordBatch] = []
    with connector({("GET", "/"): answer}) as served:
        stream = Stream(http_stream.open_stream(HttpRequest("GET", served.url)))
        with pytest.raises(errors.AccessRevoked) as caught:
            seen.extend(stream)
    assert seen == BATCHES
    assert (caught.value.code, caught.value.rule) == ("revoked", "/permission/0")
    assert stream.error is caught.value


PROBLEMS: list[tuple[int, dict[str, Any], type[errors.HanseError]]] = [
    (400, {"code": "query_invalid", "detail": "a"}, errors.BadInput),
    (401, {"code": "ticket_expired", "detail": "b"}, errors.AccessExpired),
    (401, {"code": "unauthenticated", "detail": "b"}, errors.Unauthenticated),
    (403, {"code": "purpose_not_agreed", "detail": "c", "rule": "/permission/0/constraint/1"}, errors.Refused),
    (403, {"code": "revoked", "detail": "c"}, errors.AccessRevoked),
    (404, {"code": "not_found", "detail": "d"}, errors.NotFound),
    (409, {"code": "conflict", "detail": "d"}, errors.Conflict),
    (429, {"code": "streams_max", "detail": "e"}, errors.Busy),
    (500, {"code": "internal", "detail": "g"}, errors.Broken),
]


@pytest.mark.parametrize(("status", "problem", "kind"), PROBLEMS)
def test_a_refusal_before_the_first_byte_comes_with_code_and_rule(
    status: int, problem: dict[str, Any], kind: type[errors.HanseError]
) -> None:
    with pytest.raises(errors.HanseError) as caught:
        read((status, problem))
    assert type(caught.value) is kind
    assert (caught.value.code, caught.value.rule) == (problem["code"], problem.get("rule", ""))
    assert str(caught.value) == problem["detail"]


def test_an_error_that_is_no_problem_object_still_says_where_and_what() -> None:
    with pytest.raises(errors.Broken, match="answered with status 500"):
        read((500, b"<html>"))


def test_corrupt_values_are_found_before_anybody_uses_them() -> None:
    whole = b"".join(ipc([pa.record_batch([pa.array([1]), pa.array(["ä"])], schema=SCHEMA)], complete(1)))
    assert whole.count("ä".encode()) == 1
    with pytest.raises(errors.Broken, match="UTF8"):
        read(chunked([whole.replace("ä".encode(), b"\xff\xfe")]))


def test_a_silent_owner_is_given_up_on() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(errors.Unreachable, match="sent nothing"):
        http_stream.open_stream(HttpRequest("GET", f"http://127.0.0.1:{silent.getsockname()[1]}/", idle_seconds=0.1))


@pytest.mark.parametrize("seconds", [0, -1, float("inf"), float("nan"), 1e12])
def test_patience_that_nothing_can_have_is_refused_before_anything_is_asked(seconds: float) -> None:
    with connector() as served, pytest.raises(errors.BadInput, match="expected idle_seconds above 0"):
        http_stream.open_stream(HttpRequest("GET", served.url, idle_seconds=seconds))
    assert not served.asked


HEAD, _, BODY = chunked(WHOLE).data.partition(b"\r\n\r\n")
HEAD += b"\r\n\r\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [(b"", HEAD), (HEAD, BODY), (HEAD + BODY[:400], BODY[400:]), (HEAD, chunked(recut(WHOLE, 1)).data[len(HEAD) :])],
    ids=["head", "body", "chunk", "chunks of a byte"],
)
@pytest.mark.parametrize("pause", [0.03, 0.003])
def test_an_owner_that_sends_a_byte_now_and_then_is_given_up_on(before: bytes, after: bytes, pause: float) -> None:
    pieces = [before] + [after[at : at + 1] for at in range(len(after))]
    with dripping(pieces, pause=pause) as url, pytest.raises(errors.Unreachable, match="next to nothing"):
        Stream(http_stream.open_stream(HttpRequest("GET", url, idle_seconds=0.1))).to_arrow()


@pytest.mark.parametrize("size", [1, 1000])
def test_a_plan_of_which_a_little_comes_now_and_then_is_given_up_on(size: int) -> None:
    body = b'{"rows": 1}' + b" " * 1000 * size
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
    pieces = [head, *recut([body], size)]
    with dripping(pieces, pause=0.03) as url, pytest.raises(errors.Unreachable, match="next to nothing"):
        post_small(url, "ticket", {}, seconds=0.5)


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_small_answer_that_ends_with_its_connection_is_read_whole(version: str) -> None:
    def said(status: str, body: bytes) -> AbstractContextManager[str]:
        return dripping([f"HTTP/{version} {status}\r\n\r\n".encode(), *recut([body], 7)], pause=0.01)

    with said("200 OK", b'{"a": "plan"}') as url:
        assert post_small(url, "ticket", {}, seconds=5) == {"a": "plan"}
    with said("200 OK", b'{"a": "pl') as url, pytest.raises(errors.Broken, match="expected JSON"):
        post_small(url, "ticket", {}, seconds=5)
    with said("403 No", b'{"code": "revoked", "detail": "over"}') as url, pytest.raises(errors.Refused, match="over"):
        http_stream.open_stream(HttpRequest("GET", url, idle_seconds=5))
    with said("200 OK", b"x" * 50) as url, pytest.raises(errors.Broken, match="at most 40 bytes"):
        http_stream.read_whole(HttpRequest("GET", url, idle_seconds=5), most=40)


SHORT = {
    "what ends with the connection": [b"HTTP/1.1 403 No\r\n\r\n", *[b" " * 1000] * 50],
    "head": [b"HTTP/1.1 200 OK\r\n", *[b"a: b\r\n"] * 50],
    "informational": [b"HTTP/1.1 103 Early Hints\r\n\r\n"] * 10,
    "error": [b"HTTP/1.1 403 No\r\ncontent-length: 100000\r\n\r\n", *[b" " * 1000] * 50],
    "error in chunks": [
        b"HTTP/1.1 403 No\r\ntransfer-encoding: chunked\r\n\r\n",
        *[b"400\r\n" + b" " * 1024 + b"\r\n"] * 50,
    ],
}
ASK: dict[str, Callable[[str], Any]] = {
    "a stream": lambda url: http_stream.open_stream(HttpRequest("GET", url, idle_seconds=0.5)),
    "a plan": lambda url: post_small(url, "ticket", {}, seconds=0.5),
}


@pytest.mark.parametrize("what", SHORT)
@pytest.mark.parametrize("ask", ASK)
def test_what_is_no_stream_is_there_in_the_time_of_a_silence_however_it_comes(ask: str, what: str) -> None:
    with dripping(SHORT[what], pause=0.15) as url, pytest.raises(errors.Unreachable, match="for too long") as caught:
        ASK[ask](url)
    assert caught.value.silent == 0.5


@in_real_time
def test_an_owner_that_seldom_has_a_batch_is_read_to_the_end() -> None:
    """Few bytes, each batch whole at once, and the mark of its chunk's end with it or later."""
    chunks = [b"%x\r\n%b\r\n" % (len(part), part) for part in WHOLE]
    with dripping([HEAD, *chunks, b"0\r\n\r\n"], pause=0.3) as url:
        stream = Stream(http_stream.open_stream(HttpRequest("GET", url, idle_seconds=1.0)))
        assert stream.to_arrow().num_rows == ROWS


def test_nobody_there_is_said_plainly() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(errors.Unreachable, match=f"no connection to 127.0.0.1:{port}"):
        http_stream.open_stream(HttpRequest("GET", f"http://127.0.0.1:{port}/", idle_seconds=60))


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "http_proxy"])
def test_a_host_that_only_a_proxy_would_find_is_said_to_be_reached_without_one(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for one in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(one, raising=False)
        monkeypatch.delenv(one.lower(), raising=False)
    for named in (False, True):
        if named:
            monkeypatch.setenv(name, "http://proxy.invalid:3128")
        with pytest.raises(errors.Unreachable, match=r"no connection to owner\.invalid:80: ") as caught:
            http_stream.open_stream(HttpRequest("GET", "http://owner.invalid/", idle_seconds=60))
        assert (f"{name} names a proxy" in str(caught.value)) == named


@pytest.mark.parametrize(
    "url",
    ["ftp://host/x", "host/x", "http://", "", "http://h:99999/", "http://h:x/", "http://[::1/", "http://a..b/"],
)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(errors.Broken, match="expected an address"):
        http_stream.open_stream(HttpRequest("GET", url))


def test_a_token_cannot_add_headers() -> None:
    with connector() as served, pytest.raises(errors.Broken, match="line break"):
        http_stream.open_stream(HttpRequest("GET", served.url, headers={"authorization": "Bearer x\r\nhost: other"}))


def test_every_library_takes_the_rows() -> None:
    import duckdb
    import pandas  # type: ignore[import-untyped]  # it ships no types
    import polars

    expected = pa.Table.from_batches(BATCHES)
    stream = read(chunked(WHOLE))
    assert isinstance(stream.to_pandas(), pandas.DataFrame)
    assert stream.to_pandas()["age"].sum() == sum(expected["age"].to_pylist())
    assert stream.to_polars().equals(polars.DataFrame(expected))
    assert stream.to_duckdb().aggregate("count(*)").fetchall() == [(ROWS,)]
    assert duckdb.connect().from_arrow(stream.to_arrow()).fetchall()[0] == (1, "n1")
    assert pa.table(stream) == expected


@pytest.mark.parametrize("library", ["pandas", "polars", "duckdb"])
def test_a_library_that_is_not_there_is_named_with_its_extra_and_nothing_is_read(
    library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = read(chunked(WHOLE))
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ModuleNotFoundError, match=rf"{library}, .* pip install '{library}>=[\d.]+'$"):
        getattr(stream, f"to_{library}")()
    assert sum(one.num_rows for one in stream) == ROWS


def test_a_stream_is_taken_batch_by_batch_over_the_c_interface() -> None:
    with connector({("GET", "/"): chunked(WHOLE)}) as served:
        reader = pa.RecordBatchReader.from_stream(Stream(http_stream.open_stream(HttpRequest("GET", served.url))))
        assert [one.num_rows for one in reader] == [3, 490, 1]


def test_what_goes_on_with_other_columns_is_no_part_of_a_stream() -> None:
    """Who takes it over the C interface reads memory by the schema that came first: eight bytes of each of one."""
    other = pa.schema([("age", pa.int8()), ("name", pa.string())])
    small = batch(*range(100)).cast(other)
    routes = {
        ("GET", "/a"): chunked(ipc([batch()], None)[:-1], last=False),
        ("GET", "/b"): chunked(ipc([small], complete(100), schema=other)),
    }
    with connector(routes) as served:
        first, second = (HttpRequest("GET", f"{served.url}/{name}") for name in "ab")
        stream = Stream(http_stream.open_stream(first), reopen=lambda _: http_stream.open_stream(second))
        with pytest.raises(Exception, match="columns and types"):
            pa.RecordBatchReader.from_stream(stream).read_all()
    assert isinstance(stream.error, errors.Broken)


@pytest.mark.parametrize("sent", [ipc([], None)[0][:-40], b"none of Arrow's"], ids=["cut", "other"])
def test_what_begins_as_no_stream_is_hung_up_on_though_its_error_is_kept(sent: bytes) -> None:
    with connector({("GET", "/"): chunked([sent])}) as served:
        answer = http_stream.open_stream(HttpRequest("GET", served.url))
        with pytest.raises(errors.HanseError):
            Stream(answer)
        assert answer.body.closed


def test_a_stream_that_another_thread_closes_ends_at_once() -> None:
    begun = HEAD + chunked(WHOLE[:1], last=False).data[len(HEAD) :]
    with dripping([begun, b""], pause=30) as url:
        stream = Stream(http_stream.open_stream(HttpRequest("GET", url, idle_seconds=30)))
        closing = threading.Timer(0.2, stream.close)
        closing.start()
        since = time.monotonic()
        with pytest.raises(errors.BadInput, match="closed while it was read"):
            list(stream)
        closing.join()
        assert time.monotonic() - since < 15


@pytest.fixture
def no_collector() -> Iterator[None]:
    """What is freed is what nobody has, not even itself."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("batches", [0, 1])
def test_a_stream_that_is_forgotten_lets_its_connection_go_at_once(batches: int) -> None:
    with dripping([HEAD + chunked(WHOLE[:2], last=False).data[len(HEAD) :], b""], pause=30) as url:
        stream = Stream(http_stream.open_stream(HttpRequest("GET", url)))
        for _ in zip(range(batches), stream, strict=False):
            pass
        connection = weakref.ref(stream._body._wire)
        del stream
        assert connection() is None


def test_a_process_that_was_forked_closes_its_own_end_alone() -> None:
    rest = chunked(WHOLE).data[len(HEAD) :]
    with dripping([HEAD + rest[: len(rest) // 2], rest[len(rest) // 2 :]], pause=0.5) as url:
        stream = Stream(http_stream.open_stream(HttpRequest("GET", url)))
        if not (child := os.fork()):
            stream.close()
            os._exit(0)
        os.waitpid(child, 0)
        assert sum(one.num_rows for one in stream) == stream.end["rows"]


@pytest.mark.parametrize("again", [True, False], ids=["that would go on", "that would not"])
def test_a_stream_that_is_closed_while_it_is_read_does_not_go_on(again: bool) -> None:
    at = {"block": 0, "cursor": "c"}
    with connector({("GET", "/"): chunked(ipc(BATCHES, None, places=[at] * 3)[:-1], last=False)}) as served:
        request = HttpRequest("GET", served.url)
        stream = Stream(
            http_stream.open_stream(request), reopen=(lambda _: http_stream.open_stream(request)) if again else None
        )
        batches = iter(stream)
        next(batches)
        stream.close()
        with pytest.raises(errors.BadInput, match="closed while it was read"):
            list(batches)
    assert len(served.asked) == 1


def test_a_stream_that_is_closed_gives_nothing_though_it_has_come() -> None:
    one = chunked([b"".join(WHOLE)])  # all of it is there with the first batch
    with connector({("GET", "/"): one}) as served:
        for given in range(2):
            stream = Stream(http_stream.open_stream(HttpRequest("GET", served.url)))
            with stream:
                batches = iter(stream)
                for _ in range(given):
                    next(batches)
            with pytest.raises(errors.BadInput, match=f"was closed {'while' if given else 'before'} it was read"):
                next(batches)
        with Stream(http_stream.open_stream(HttpRequest("GET", served.url))) as unread:
            pass
        with pytest.raises(errors.BadInput, match="closed before it was read"):
            unread.to_arrow()


def test_a_stream_that_is_closed_before_it_is_there_again_asks_no_more() -> None:
    asked = []

    def again(_: Any) -> http_stream.HttpReply:
        asked.append(stream.close())
        raise errors.Unreachable("no connection")

    at = {"block": 0, "cursor": "c"}
    with connector({("GET", "/"): chunked(ipc(BATCHES, None, places=[at] * 3)[:-1], last=False)}) as served:
        answer = http_stream.open_stream(HttpRequest("GET", served.url))
        stream = Stream(answer, reopen=again, patience=Patience(seconds=0.5))
        with pytest.raises(errors.BadInput, match="closed while it was read"):
            list(stream)
    assert len(asked) == 1


def test_what_ends_a_stream_reaches_whoever_took_it_over_the_c_interface() -> None:
    with connector({("GET", "/"): chunked(ipc(BATCHES, {"status": "revoked", "reason": "no more"}))}) as served:
        stream = Stream(http_stream.open_stream(HttpRequest("GET", served.url)))
        with pytest.raises(Exception, match="no more"):
            pa.RecordBatchReader.from_stream(stream).read_all()
    assert isinstance(stream.error, errors.AccessRevoked)


def test_a_stream_is_read_once() -> None:
    with connector({("GET", "/"): chunked(WHOLE)}) as served:
        stream = Stream(http_stream.open_stream(HttpRequest("GET", served.url)))
        assert sum(one.num_rows for one in stream) == ROWS
        with pytest.raises(errors.BadInput, match="read already"):
            list(stream)


def test_memory_stays_at_a_few_batches_however_long_the_stream() -> None:
    one = batch(*range(20_000))
    with connector({("GET", "/"): chunked(ipc([one] * 50, complete(50 * 20_000)))}) as served:
        stream = Stream(http_stream.open_stream(HttpRequest("GET", served.url)))
        before, most = pa.total_allocated_bytes(), 0
        for _ in stream:
            most = max(most, pa.total_allocated_bytes() - before)
    assert stream.rows == 1_000_000
    assert most < 4 * one.nbytes
