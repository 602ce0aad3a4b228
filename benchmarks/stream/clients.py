"""What a reader does, one function per way; `measured` runs one in a fresh process and says what it cost.

Every way ends with the last batch received and dropped, or (`*_table`) with an Arrow table in memory.
"""

from __future__ import annotations

import resource
import socket
import ssl
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import fsspec.implementations.http
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import requests
import urllib3
from hanse._transport import http_stream
from hanse._transport.http_stream import HttpRequest
from hanse.stream import Stream
from pyarrow import flight

from tests.support.children import forked

_CHUNK = 4 * 2**20


@dataclass
class Took:
    """One read: when the first batch was there and when the last, in seconds; rows; the process's own figures."""

    first: float = 0.0
    seconds: float = 0.0
    rows: int = 0
    cpu: float = 0.0
    peak_mb: float = 0.0
    failed: str = ""


def drop(batches: Iterable[Any], begun: float) -> Took:
    """Count rows and forget them."""
    took = Took()
    for batch in batches:
        took.first = took.first or time.perf_counter() - begun
        took.rows += batch.num_rows
    return took


def raw(begun: float, port: int, number: int, certificate: str) -> Took:
    plain = socket.create_connection(("127.0.0.1", port))
    client = (
        ssl.create_default_context(cafile=certificate).wrap_socket(plain, server_hostname="127.0.0.1")
        if certificate
        else plain
    )
    client.sendall(str(number).encode())
    took, got = Took(), 1
    while got:
        view, at = memoryview(bytearray(_CHUNK)), 0
        while at < _CHUNK and (got := client.recv_into(view[at:])):
            at += got
            took.first = took.first or time.perf_counter() - begun
    return took


def flown(begun: float, location: str, ticket: str, token: str = "", certificate: str = "") -> Took:
    options: dict[str, Any] = {"tls_root_certs": Path(certificate).read_bytes()} if certificate else {}
    with flight.connect(location, **options) as client:
        call = flight.FlightCallOptions(headers=[(b"authorization", f"Bearer {token}".encode())] if token else [])
        return drop((chunk.data for chunk in client.do_get(flight.Ticket(ticket), call)), begun)


def governed_flight(begun: float, location: str, dataset: str, token: str, certificate: str = "") -> Took:
    """An owner's Flight as a plain client meets it: ask for the endpoints, read one after the other."""
    call = flight.FlightCallOptions(headers=[(b"authorization", f"Bearer {token}".encode())])
    options: dict[str, Any] = {"tls_root_certs": Path(certificate).read_bytes()} if certificate else {}
    with flight.connect(location, **options) as client:
        info = client.get_flight_info(flight.FlightDescriptor.for_path(dataset), call)
        return drop((chunk.data for one in info.endpoints for chunk in client.do_get(one.ticket, call)), begun)


def _hanse(url: str, token: str) -> Stream:
    return Stream(http_stream.open_stream(HttpRequest("GET", url, {"authorization": f"Bearer {token}"})))


def hanse(begun: float, url: str, token: str) -> Took:
    return drop(_hanse(url, token), begun)


def hanse_table(begun: float, url: str, token: str) -> Took:
    return drop([_hanse(url, token).to_arrow()], begun)


def plain_urllib3(begun: float, url: str, token: str) -> Took:
    answer = urllib3.PoolManager().request(
        "GET", url, headers={"authorization": f"Bearer {token}"}, preload_content=False
    )
    return drop(pa.ipc.open_stream(answer), begun)


def plain_requests(begun: float, url: str, token: str) -> Took:
    answer = requests.get(url, headers={"authorization": f"Bearer {token}"}, stream=True, timeout=60)
    return drop(pa.ipc.open_stream(answer.raw), begun)


def local_iter(begun: float, path: str, *_: Any) -> Took:
    return drop(pq.ParquetFile(path).iter_batches(16_384), begun)


def local_scanner(begun: float, path: str, columns: list[str], condition: tuple[str, str, Any] | None) -> Took:
    data = ds.dataset(path)
    return drop(data.scanner(columns=columns or None, filter=_expression(data, condition)).to_batches(), begun)


def local_whole(begun: float, path: str, columns: list[str], condition: tuple[str, str, Any] | None) -> Took:
    expression = _expression(ds.dataset(path), condition)
    return drop([pq.read_table(path, columns=columns or None, filters=expression)], begun)


def local_duckdb(begun: float, path: str, columns: list[str], condition: tuple[str, str, Any] | None) -> Took:
    shown = ", ".join(columns) or "*"
    where = f"WHERE {condition[0]} {'<' if condition[1] == 'lt' else '>='} '{condition[2]}'" if condition else ""
    with duckdb.connect(":memory:", config={"threads": 2}) as con:
        con.execute("SET enable_progress_bar = false")
        return drop(con.sql(f"SELECT {shown} FROM read_parquet('{path}') {where}").to_arrow_reader(16_384), begun)


def ranged_table(begun: float, url: str, columns: list[str], condition: tuple[str, str, Any] | None) -> Took:
    files = fsspec.implementations.http.HTTPFileSystem()
    with files.open(url) as file:
        return drop([_read(file, columns, condition)], begun)


def downloaded_table(begun: float, url: str, columns: list[str], condition: tuple[str, str, Any] | None) -> Took:
    return drop([_read(pa.BufferReader(urllib3.request("GET", url).data), columns, condition)], begun)


def _read(file: Any, columns: list[str], condition: tuple[str, str, Any] | None) -> pa.Table:
    if condition is None:
        return pq.read_table(file, columns=columns or None)
    schema = pq.ParquetFile(file).schema_arrow
    return pq.read_table(file, columns=columns, filters=_compare(schema, condition))


def _expression(data: ds.Dataset, condition: tuple[str, str, Any] | None) -> Any:
    return None if condition is None else _compare(data.schema, condition)


def _compare(schema: pa.Schema, condition: tuple[str, str, Any]) -> Any:
    name, operator, value = condition
    wanted = pa.scalar(value).cast(schema.field(name).type)
    return ds.field(name) < wanted if operator == "lt" else ds.field(name) >= wanted


WAYS: dict[str, Callable[..., Took]] = {
    function.__name__: function
    for function in (
        raw, flown, governed_flight, hanse, hanse_table, plain_urllib3, plain_requests, local_iter, local_scanner,
        local_whole, local_duckdb, ranged_table, downloaded_table,
    )
}  # fmt: skip


def _child(way: str, given: tuple[Any, ...], told: Any) -> None:
    before = time.process_time()
    begun = time.perf_counter()
    try:
        took = WAYS[way](begun, *given)
        took.seconds = time.perf_counter() - begun
    except Exception as error:  # noqa: BLE001  told to the parent, which prints it
        took = Took(failed=f"{type(error).__name__}: {error}")
    took.cpu = time.process_time() - before
    took.peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    told.send(took)


def measured(way: str, *given: Any) -> Took:
    """One read in a process of its own."""
    started = forked(__name__)
    ours, theirs = started.Pipe()
    child = started.Process(target=_child, args=(way, given, theirs))
    child.start()
    theirs.close()
    try:
        took: Took = ours.recv()
    except EOFError:
        took = Took(failed="the reader crashed")
    child.join()
    return took
