"""A coordinator over owners in memory, as the tests of questions over many owners use it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from connector.events import Event, QueryCoordinated
from connector.query.coordinate import Coordinator, Question
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

    @property
    def recorded(self) -> list[QueryCoordinated]:
        return [event for event in self.events if isinstance(event, QueryCoordinated)]


def read(data: bytes) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    with pa.ipc.open_stream(data) as reader:
        while True:
            batch, metadata = reader.read_next_batch_with_custom_metadata()
            if metadata is not None:
                return rows, json.loads(metadata[b"hanse.end"])
            rows += batch.to_pylist()
