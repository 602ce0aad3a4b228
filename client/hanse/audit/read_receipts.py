"""Receipts: what came of each read, told to the reader's own connector once the read is over.

An owner's log says what left. What the other side had stands in that side's own log, so that a record that the owner
leaves out, or makes larger, contradicts one that it cannot change (`hanse audit match`, decision 55).

Told in a thread, after the end and many in one call. Nothing here waits for that, raises, or keeps more than
`_WAITING_MAX` of them; what could not be told is warned of once. Each has an id of its own, so that one that is told
again counts once. Knows no streams.
"""

from __future__ import annotations

import atexit
import math
import os
import secrets
import sys
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

from hanse._transport.api import Api
from hanse.errors import Broken, HanseError, NotFound
from hanse.retry import is_temporary

LEFT = "left"  # code of a read that its reader ended himself
_WAITING_MAX = 4096  # of some 700 bytes each
_TOGETHER = 256  # in one call, as many as a connector takes
_GATHER_SECONDS = 0.2  # others end at the same time
_CALL_SECONDS = 10.0
_PAUSES = (0.5, 2.0, 8.0, 30.0)  # before another attempt: a connector that starts anew is there by then
_EXIT_SECONDS = 1.5  # that a process waits at its end
_SLOW = "it did not answer in time before the process ended"
_TEXTS = {"status": 64, "code": 64, "digest": 200}  # of an owner's end record, and how long they may be
_NUMBER_MAX = 2**53  # beyond it a log has no exact numbers


@dataclass(frozen=True, slots=True)
class Receipts:
    """Of reads under one agreement: which connector is told, by which token, and what each says."""

    url: str
    token: str
    about: Mapping[str, str]  # agreement and transfer

    def begin(self, read_id: str) -> Receipt:
        """The receipt of a read that has begun, by the id that its owner tells."""
        receipt = Receipt(self, _plain(read_id, 128))
        _teller.begin(receipt)
        return receipt


class Receipt:
    """What has come of one read so far. Whoever counts `rows` calls `end`; what is told is told once, also where it is
    ended twice, or in a process that was forked since."""

    __slots__ = ("begun", "id", "of", "read_id", "rows")

    def __init__(self, of: Receipts, read_id: str) -> None:
        self.of, self.read_id = of, read_id
        self.id = secrets.token_hex(16)
        self.rows = 0
        self.begun = time.monotonic()

    def end(self, record: Mapping[str, Any] | None = None, *, code: str = "", digest: str = "") -> None:
        """The read is over: with the owner's end record, or else why without. May be called anywhere, also by the
        collector. `digest`: computed over what came before that record; empty where it was not computed."""
        _teller.end(self, record, code, digest)

    def told(self, record: Mapping[str, Any] | None, code: str, digest: str = "") -> dict[str, Any]:
        """As the connector takes it."""
        seconds = math.ceil(time.monotonic() - self.begun)  # its owner may have recorded it as soon as it began
        told = {**self.of.about, "id": self.id, "read": self.read_id, "rows": self.rows, "seconds": seconds}
        if record is None:
            return told | {"code": _plain(code, 64)}
        if digest:
            told["digest"] = digest
        return told | {"read": self.read_id or _plain(str(record.get("query", "")), 128), "end": _of_owner(record)}


def _of_owner(record: Mapping[str, Any]) -> dict[str, Any]:
    """What of an end record is as it should be: its owner may write anything."""
    texts = {name: _plain(str(record.get(name, "")), most) for name, most in _TEXTS.items()}
    numbers = {name: record.get(name) for name in ("rows", "bytes")}
    counts = {name: value for name, value in numbers.items() if type(value) is int and 0 <= value <= _NUMBER_MAX}
    return {name: text for name, text in texts.items() if text} | counts


def _plain(text: str, most: int) -> str:
    """The text, or none where it is not one of so many letters, digits and signs."""
    return text if len(text) <= most and all("!" <= sign <= "~" for sign in text) else ""


_Ended = tuple[Receipts, dict[str, Any]]


class _Teller:
    """Of one process: the reads under way, those that have ended, and the thread that tells of them while there are
    any.

    The collector may end a read in the middle of anything, and in any thread: so there is a queue for that which may be
    put to by whoever is putting to it, and nobody waits for the lock.
    """

    def __init__(self) -> None:
        self._under_way: dict[str, Receipt] = {}
        self._ended: SimpleQueue[_Ended] = SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._leaving = threading.Event()
        self._until = 0.0  # where we leave: when we have waited long enough
        self._prepared = self._warned = False

    def begin(self, receipt: Receipt) -> None:
        self._prepare_to_leave()
        self._under_way[receipt.id] = receipt

    def end(self, receipt: Receipt, record: Mapping[str, Any] | None, code: str, digest: str) -> None:
        if self._under_way.pop(receipt.id, None) is None:  # ended before, or begun in the process that we are forked of
            return
        if receipt.of.url in _without:
            return
        if self._ended.qsize() >= _WAITING_MAX:
            self._warn("too many wait for it")
            return
        self._ended.put((receipt.of, receipt.told(record, code, digest)))
        self._wake()

    def leave(self) -> None:
        """The process ends: tell of what is left, for a moment. What is still being read ends with it."""
        if self._leaving.is_set() and self._thread is not None:  # that of `multiprocessing`, or ours, has waited for it
            return
        for receipt in list(self._under_way.values()):
            receipt.end(code=LEFT)
        if self._thread is None and self._ended.empty():
            return
        self._until = time.monotonic() + _EXIT_SECONDS
        self._leaving.set()
        self._wake()
        with suppress(KeyboardInterrupt):  # who interrupts that wants no more of it
            if (thread := self._thread) is not None:
                thread.join(_EXIT_SECONDS)
            else:  # no thread is started any more
                self._tell_all()
            if not self._ended.empty() or (thread is not None and thread.is_alive()):
                self._warn(_SLOW)

    def _prepare_to_leave(self) -> None:
        """A forked process of `multiprocessing` (a DataLoader's worker) ends without `atexit`, by finalizers of its
        own."""
        if not self._prepared:
            self._prepared = True
            if (util := sys.modules.get("multiprocessing.util")) is not None:
                util.Finalize(None, self.leave, exitpriority=1)

    def _wake(self) -> None:
        """Have a thread tell. Who holds the lock meanwhile starts one, or looks at the queue once more."""
        if self._lock.acquire(blocking=False):
            try:
                if self._thread is None or not self._thread.is_alive():
                    thread = threading.Thread(target=self._run, daemon=True, name="hanse-receipts")
                    thread.start()
                    self._thread = thread
            except RuntimeError:  # the interpreter is ending
                pass
            finally:
                self._lock.release()

    def _run(self) -> None:
        """Until nothing more is there: who forks has no thread to leave behind. What came as we were about to end, and
        found us there, is looked for after that."""
        while True:
            self._tell_all()
            with self._lock:
                self._thread = None
            if self._ended.empty() or self._late() or not self._go_on():
                return

    def _go_on(self) -> bool:
        """Whether no other thread tells by now, so that this one does."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.current_thread()
            return self._thread is threading.current_thread()

    def _tell_all(self) -> None:
        """Tell of what has ended until nothing more is there, or it is late."""
        while batch := self._gathered():
            by_connector: dict[tuple[str, str], list[dict[str, Any]]] = {}
            for of, told in batch:
                by_connector.setdefault((of.url, of.token), []).append(told)
            for (url, token), ends in by_connector.items():
                self._tell(url, token, ends)

    def _gathered(self) -> list[_Ended]:
        """What has ended by now, with what ends at the same time; none where nothing has, or where it is late."""
        found: list[_Ended] = []
        with suppress(Empty):
            if not self._late():
                found.append(self._ended.get_nowait())
                self._leaving.wait(_GATHER_SECONDS)
            while found and len(found) < _TOGETHER:
                found.append(self._ended.get_nowait())
        return found

    def _late(self) -> bool:
        """Whether we leave, and have waited for that long enough."""
        return self._leaving.is_set() and time.monotonic() >= self._until

    def _tell(self, url: str, token: str, ends: Sequence[Mapping[str, Any]]) -> None:
        """Tell a connector, again where that may help. Where we leave, a first failure is the last."""
        for pause in (*_PAUSES, 0.0):
            if url in _without:
                return
            if self._late():
                self._warn(_SLOW)
                return
            seconds = self._until - time.monotonic() if self._leaving.is_set() else _CALL_SECONDS
            try:
                if _posted(url, token, ends, seconds=max(seconds, 0.1)).get("unknown"):
                    self._warn("it has no such agreement")
                return
            except NotFound:  # an older one, which takes none
                _without.add(url)
            except Exception as error:  # noqa: BLE001  whatever it is, no reader is to hear of it
                passing = isinstance(error, HanseError) and is_temporary(error)
                if not passing or not pause or self._leaving.is_set():
                    self._until = 0.0
                    self._warn(str(error) if isinstance(error, HanseError) else type(error).__name__)
                    return
                self._leaving.wait(pause)

    def _warn(self, why: str) -> None:
        if not self._warned:
            self._warned = True
            with suppress(Exception):  # of who makes errors of warnings
                warnings.warn(
                    f"the connector was not told of every read that has ended ({why}): its log has no receipt of "
                    "these. The rows that came are whole all the same",
                    RuntimeWarning,
                    stacklevel=2,
                )


def _posted(url: str, token: str, ends: Sequence[Mapping[str, Any]], *, seconds: float) -> Mapping[str, Any]:
    api = Api(url, token, seconds=seconds)  # one of our own: that of the reader may be closed by now, or a parent's
    with closing(api):
        answer = api.post("/receipts", {"ends": ends})
    if not isinstance(answer, dict):
        raise Broken(f"expected what was recorded from {url}, got something else")
    return answer


_without = set[str]()  # connectors that take no receipts: not told again in this process, nor in those forked of it
_teller = _Teller()


def _anew() -> None:
    """A forked process tells of its own reads: its parent has the others, and the thread."""
    global _teller
    _teller = _Teller()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_anew)


@atexit.register
def leave() -> None:
    """Tell of what is left, as where the process ends: for who ends the connector before that."""
    _teller.leave()
