"""A case over Arrow Flight, read with nothing of ours: a dataset by its path, an envelope, a statement by ADBC."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.flight as fl

from tests.support import flying, provider, streamed
from tests.support.random_case import Case
from tests.support.random_reads import Read, quoted
from tests.support.random_space import Different, World


class OverFlight(Case):
    """A path gives all that the policy shows, in its order, by one endpoint or several; SQL gives rows in any order."""

    endpoints = 0

    @classmethod
    def fitting(cls, asked: Read, world: World, rng: random.Random) -> Read:
        whole = replace(asked, columns=(), where="") if rng.random() < 0.5 else asked
        return replace(whole, blocks="", cut=None, most=None, batch_rows=None, codec="")

    def words(self) -> Iterator[str]:
        yield from super().words()
        yield "over Flight"
        yield from ["several endpoints"] if self.endpoints > 1 else []

    async def ask(self) -> str:
        if not (self.asked.columns or self.asked.where) and self.rng.random() < 0.8:
            await self._by_path()
        else:
            rows = await asyncio.to_thread(self.rng.choice((self._by_envelope, self._by_statement)))
            self._compare(rows.take(in_order(rows)), self.expected.take(in_order(self.expected)))
        return "equal"

    async def _by_path(self) -> None:
        for _ in range(1 + self.asked.twice):
            info = await asyncio.to_thread(self._info, provider.OWNER, self.world.name)
            self.endpoints = len(info.endpoints)
            answers = await asyncio.gather(*(asyncio.to_thread(self._read, one.ticket) for one in info.endpoints))
            self._compare(pa.Table.from_batches(chain(*answers), info.schema), self.expected)

    def _by_envelope(self) -> pa.Table:
        info = self._info(sql=self._sql, action=self._action)
        (endpoint,) = info.endpoints
        return pa.Table.from_batches(self._read(endpoint.ticket), info.schema)

    def _by_statement(self) -> pa.Table:
        header = {"adbc.flight.sql.rpc.call_header.hanse-action": self._action}
        connected = flying.connect(self.over.door.front, self.ticket, **header)
        with connected as connection, connection.cursor() as cursor:
            cursor.execute(self._sql)
            return cursor.fetch_arrow_table()

    @property
    def _action(self) -> str:
        return self.rng.choice(("query", "stream"))

    @property
    def _sql(self) -> str:
        names = ", ".join(map(quoted, self.asked.columns)) or "*"
        sql = f"SELECT {names} FROM {quoted(provider.OWNER)}.{quoted(self.world.name)}"
        return f"{sql} WHERE {self.asked.where}" if self.asked.where else sql

    def _info(self, *path: str, **envelope: Any) -> fl.FlightInfo:
        with self._client() as client:
            return client.info(*path, **envelope)

    def _read(self, ticket: fl.Ticket) -> list[pa.RecordBatch]:
        """The batches of an endpoint, once its end says that they are all."""
        with self._client() as client:
            table, end = flying.whole(client.get(ticket))
        batches: list[pa.RecordBatch] = table.to_batches()
        if end["status"] != "complete" or end["rows"] != table.num_rows:
            raise Different(f"{table.num_rows} rows ended as {end}")
        self.check_batches(batches)
        return batches

    def _client(self) -> Any:
        return flying.flyer(self.over.door.front, self.ticket)

    def _compare(self, found: pa.Table, expected: pa.Table) -> None:
        if wrong := streamed.unlike(found, expected):
            raise Different(wrong)


def in_order(table: pa.Table) -> pa.Array:
    """Of rows that come in no order of their own: SQL asked for none."""
    rows = list(zip(*map(texts, table.columns), strict=True))
    return pa.array(sorted(range(len(rows)), key=rows.__getitem__), pa.int64())


def texts(column: pa.ChunkedArray) -> Iterator[str]:
    """Values as texts, moments as numbers: Python has few years."""
    kind = column.type
    if pa.types.is_date(kind) or pa.types.is_timestamp(kind) or pa.types.is_time(kind):
        column = column.cast(pa.int32() if kind.bit_width == 32 else pa.int64())
    return map(repr, column.to_pylist())
