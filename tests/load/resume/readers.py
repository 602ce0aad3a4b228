"""Readers as processes that can be killed at any moment: each gives its rows, and with them its state, to the trial.

A reader goes on while it has leave for another batch, so the trial says where it is killed, to the row.
"""

from __future__ import annotations

import json
import os
import signal
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import hanse
import numpy as np
from hanse.agreement import Name, TransferAccess
from hanse.client import Dataset
from hanse.loaders import Loader

from tests.load.resume.sequence import Ids, check_of
from tests.support.children import forked


@dataclass(frozen=True, slots=True)
class Source:
    """What a reader needs to get at a dataset: its own connector, and the transfer there."""

    url: str
    token: str
    access: TransferAccess

    def open(self) -> Dataset:
        return Dataset(hanse.connect(self.url, self.token), self.access)


def source(url: str, token: str, *, name: str, dataset: str, agreement: str, transfer: str) -> Source:
    return Source(url, token, TransferAccess(Name("north", name), dataset, agreement, transfer, ""))


@dataclass(frozen=True, slots=True)
class Task:
    """What one reader is to do: which loader, from which state (JSON), for how many epochs."""

    source: Source
    options: dict[str, Any]
    state: str = ""
    epochs: int = 1


@dataclass(frozen=True, slots=True)
class Record:
    """A batch as its reader gave it, and the state after it. `over`: the epoch has ended; `failed`: the reader has."""

    epoch: int
    ids: Ids
    state: str
    reopened: int = 0
    over: bool = False
    failed: str = ""


def _values(column: Any) -> Ids:
    """A column of whole numbers. Arrow's `to_numpy` imports pandas, a second of each reader's life."""
    return np.frombuffer(column.buffers()[1], np.int64)[column.offset : column.offset + len(column)]


def _child(task: Task, told: Connection) -> None:
    try:
        loader = Loader(task.source.open(), **task.options)
        if task.state:
            loader.load_state_dict(json.loads(task.state))
        told.send(Record(loader.epoch, _NONE, json.dumps(loader.state_dict())))
        for number in range(task.epochs):
            if number:
                loader.set_epoch(loader.epoch + 1)
            for batch in loader:
                ids = _values(batch.column("id"))
                if not np.array_equal(_values(batch.column("check")), check_of(ids)):
                    raise AssertionError(f"a row among {ids[:3]}... has another row's content")
                told.recv()
                told.send(Record(loader.epoch, ids, json.dumps(loader.state_dict()), loader.throughput.reopened))
            told.recv()
            told.send(Record(loader.epoch, _NONE, "", loader.throughput.reopened, over=True))
    except (EOFError, BrokenPipeError):
        return
    except BaseException as error:  # noqa: BLE001  told to the trial
        told.send(Record(-1, _NONE, "", failed=f"{type(error).__name__}: {error}"))


_NONE: Ids = np.empty(0, np.int64)
_IMPORTED = "tests.load.resume.trials", "rich.console", "rich.progress", "rich.table"  # so that no child imports


@dataclass(slots=True)
class Reader:
    """A running reader, seen from the trial. `ahead`: batches that it may have under way."""

    task: Task
    ahead: int = 1
    pipe: Connection = field(init=False)
    process: Any = field(init=False)

    def __post_init__(self) -> None:
        started = forked(*_IMPORTED)
        self.pipe, theirs = started.Pipe()
        self.process = started.Process(target=_child, args=(self.task, theirs), daemon=True)
        self.process.start()
        theirs.close()
        for _ in range(self.ahead):
            self.pipe.send(None)

    def next(self) -> Record:
        """The next record; it may send another from then on."""
        try:
            found: Record = self.pipe.recv()
        except (EOFError, OSError):
            return Record(-1, _NONE, "", failed="the reader has gone without a word")
        if found.epoch >= 0 and (len(found.ids) or found.over):
            with suppress(OSError):  # it had nothing more to say
                self.pipe.send(None)
        return found

    def kill(self) -> None:
        """SIGKILL, wherever it is."""
        with suppress(ProcessLookupError):  # it had come to its end
            os.kill(self.process.pid, signal.SIGKILL)
        self.process.join()
        self.pipe.close()

    def end(self) -> None:
        """Let one that has said everything end."""
        self.pipe.close()
        self.process.join(30)
        if self.process.is_alive():
            self.kill()
