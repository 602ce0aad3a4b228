"""Answers that may end before all has come: what came of them over HTTP and over Flight, and how they ended."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx2
import pyarrow as pa
import pyarrow.flight as fl

from connector.dataplane.flight.front import Front
from tests.support import provider, streamed
from tests.support.flying import flyer
from tests.support.provider import Provider
from tests.support.random_space import Different

REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Came:
    """What came of an answer. `end`: its end record, of a refusal its code; None where it was cut off."""

    batches: tuple[pa.RecordBatch, ...] = ()
    places: tuple[dict[str, Any], ...] = ()
    end: Mapping[str, Any] | None = None

    @property
    def rows(self) -> int:
        return sum(batch.num_rows for batch in self.batches)

    @property
    def status(self) -> str:
        return "cut" if self.end is None else str(self.end["status"])

    def check_first_of(self, expected: pa.Table) -> None:
        """Different unless these are the first of the expected rows, as many as the end says, all if it is complete."""
        if self.batches and (wrong := streamed.unlike(self._table, expected.slice(0, self.rows))):
            raise Different(f"{wrong}, ended as {self.end}")
        if self.end is not None and self.status != REFUSED and self.end["rows"] != self.rows:
            raise Different(f"{self.rows} rows came, ended as {self.end}")
        if self.status == "complete" and self.rows != len(expected):
            raise Different(f"{self.rows} of {len(expected)} rows, and complete")

    @property
    def _table(self) -> pa.Table:
        return pa.Table.from_batches(self.batches)


async def over_http(
    client: httpx2.AsyncClient, ticket: str, parameters: Mapping[str, str], *, cut: int | None = None
) -> Came:
    """`cut`: after so many bytes the connection is closed."""
    body, headers = bytearray(), {"authorization": f"Bearer {ticket}"}
    async with client.stream("GET", "/data/v1", params=dict(parameters), headers=headers) as answer:
        async for part in answer.aiter_bytes():
            body += part
            if cut is not None and len(body) >= cut:
                break
    if answer.status_code != 200:
        return Came(end={**json.loads(body), "status": REFUSED})
    batches, places, end = streamed.partly(bytes(body if cut is None else body[:cut]))
    return Came(tuple(batches), tuple(places), end)


async def over_flight(front: Front, ticket: str, name: str, *, cut: int | None = None) -> Came:
    """All rows of a dataset that has one endpoint. `cut`: after so many batches the call is cancelled."""
    return await asyncio.to_thread(_over_flight, front, ticket, name, cut)


def _over_flight(front: Front, ticket: str, name: str, cut: int | None) -> Came:
    batches: list[pa.RecordBatch] = []
    try:
        with flyer(front, ticket) as client:
            (endpoint,) = client.info(provider.OWNER, name).endpoints
            reader = client.get(endpoint.ticket)
            for chunk in reader:
                if chunk.app_metadata is not None:
                    return Came(tuple(batches), (), json.loads(chunk.app_metadata.to_pybytes()))
                batches.append(chunk.data)
                if cut is not None and len(batches) >= cut:
                    reader.cancel()
                    break
    except fl.FlightError as error:
        told = json.loads(error.extra_info)
        return Came(tuple(batches), (), told | {"status": told.get("end", REFUSED)})
    return Came(tuple(batches))


async def check_records(running: Provider, agreement: str, answers: Sequence[Came]) -> int:
    """Different unless the log has what came of each read; the bytes that have left under the agreement."""
    await provider.settled(running)
    ended = {one.process: one for one in running.of_kind("ReadEnded") if one.agreement == agreement}
    for came in answers:
        if came.end is None or came.status == REFUSED:
            continue
        told = ended[came.end["query"]].detail
        if any(told[name] != came.end[name] for name in ("rows", "bytes", "batches", "digest")):
            raise Different(f"recorded as {told}, ended as {came.end}")
    return sum(one.detail["bytes"] for one in ended.values())
