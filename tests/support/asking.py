"""A coordinator over owners in memory, as the tests of questions over many owners use it."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from connector.events import Event, QueryCoordinated
from connector.federation import execution
from connector.federation.coordinator import Coordinator, Question
from connector.federation.deadline import Deadline
from tests.support.clocks import hands
from tests.support.owners import Owners


class Asked:
    """A coordinator with its owners, and what the log was told."""

    def __init__(self, owners: Owners, coordinator: Coordinator, events: list[Event], folder: Path) -> None:
        self.owners, self.coordinator, self.events, self.folder = owners, coordinator, events, folder

    async def rows(self, sql: str, **more: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """The answer's rows and its end record."""
        answer = await self.coordinator.ask(Question(sql=sql, **more), by="tester")
        try:
            data = b"".join([bytes(part) async for part in answer.parts()])
        finally:
            await answer.close()
        return read(data)

    async def late(self, sql: str, *, answered: int, **more: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """As `rows`, where the time of one owner is over once this many others have answered: ten minutes in all."""
        with hands() as clock, pytest.MonkeyPatch.context() as patch:
            patch.setattr(execution, "Deadline", partial(Deadline, clock=clock))
            asking = asyncio.ensure_future(self.rows(sql, seconds=600.0, **more))
            while not asking.done() and all(len(one.owners) < answered for one in self.coordinator.recent()):
                await asyncio.sleep(0.01)
            await clock.go_on(545.0)  # a tenth is kept for merging
            return await asking

    @property
    def recorded(self) -> list[QueryCoordinated]:
        """The first record of each question, which has all; those under its other agreements say as much of it."""
        found: dict[str, QueryCoordinated] = {}
        for event in self.under:
            first = found.setdefault(event.process, event)
            assert replace(event, agreement=first.agreement, dataset=first.dataset, detail=first.detail) == first
            assert event.detail["rows"] == first.detail["rows"]
        return list(found.values())

    @property
    def under(self) -> list[QueryCoordinated]:
        """All records of questions, one under each of their agreements."""
        return [event for event in self.events if isinstance(event, QueryCoordinated)]


def read(data: bytes) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    with pa.ipc.open_stream(data) as reader:
        while True:
            batch, metadata = reader.read_next_batch_with_custom_metadata()
            if metadata is not None:
                return rows, json.loads(metadata[b"hanse.end"])
            rows += batch.to_pylist()
