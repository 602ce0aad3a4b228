"""Receipts: what came of each read, told to the reader's own connector once the read is over.

An owner's log says what left. What the other side had stands in that side's own log, so that a record that the owner
leaves out, or makes larger, contradicts one that it cannot change (`hanse audit match`, decision 55).

Told in a thread, after the end and many in one call. Nothing here waits for that, raises, or keeps more than
`_WAITING_MAX` of them; what could not be told is warned of once. Each has an id of its own, so that one that is told
again counts once. Knows no streams.
"""

from __future__ import annotations

import atexit
import json
import os
import secrets
import sys
import threading
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

from hanse import _wire
from hanse._wire import Request
from hanse.errors import Broken, HanseError
from hanse.patience import passes

LEFT = "left"  # code of a read that its reader ended himself
_JSON = "application/json"
_ANSWER_MAX = 64 * 1024
_WAITING_MAX = 4096  # of some 700 bytes each
_TOGETHER = 256  # in one call, as many as a connector takes
_GATHER_SECONDS = 0.2  # others end at the same time
_IDLE_SECONDS = 5.0  # the thread ends when nothing more comes: who forks has none to leave behind
_CALL_SECONDS = 10.0
_PAUSES = (0.5, 2.0, 8.0, 30.0)  # before another attempt: a connector that starts anew is there by then
_EXIT_SECONDS = 1.5  # that a process waits at its end
_TEXTS = {"status": 64, "code": 64, "digest": 200}  # of an owner's end record, and how long they may be
_NUMBER_MAX = 2**53  # beyond it a log has no exact numbers


@dataclass(frozen=True, slots=True)
class Receipts:
    """Of reads under one agreement: to which connector's API they go, who tells it, and what each says."""

    base: str
    authorization: str
    about: Mapping[str, str]  # agreement and transfer

    def begin(self, read_id: str) -> Receipt:
        """The receipt of a read that has begun, by the id that its owner tells."""
        receipt = Receipt(self, _plain(read_id, 128))
        _teller.begin(receipt)
        return receipt


class Receipt:
    """What has come of one read so far. Whoever counts `rows` calls `end`; what is told is told once, also where it is
    ended twice, or in a process that was forked since."""

    __slots__ = ("id", "of", "read_id", "rows")

    def __init__(self, of: Receipts, read_id: str) -> None:
        self.of, self.read_id = of, read_id
        self.id = secrets.token_hex(16)
        self.rows = 0

    def end(self, record: Mapping[str, Any] | None = None, *, code: str = "") -> None:
        """The read is over: with the owner's end record, or else why without. May be called anywhere, also by the
        collector."""
        _teller.end(self, record, code)

    def told(self, record: Mapping[str, Any] | None, code: str) -> dict[str, Any]:
        """As the connector takes it."""
        told = {**self.of.about, "id": self.id, "read": self.read_id, "rows": self.rows}
        if record is None:
            return told | {"code": _plain(code, 64)}
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
        self._ended: SimpleQueue[_Ended | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._leaving = threading.Event()
        self._prepared = self._warned = False

    def begin(self, receipt: Receipt) -> None:
        self._prepare_to_leave()
        self._under_way[receipt.id] = receipt

    def end(self, receipt: Receipt, record: Mapping[str, Any] | None, code: str) -> None:
        if self._under_way.pop(receipt.id, None) is None:  # ended before, or begun in the process that we are forked of
            return
        if self._ended.qsize() >= _WAITING_MAX:
            self._warn("too many wait for it")
            return
        self._ended.put((receipt.of, receipt.told(record, code)))
        self._wake()

    def leave(self) -> None:
        """The process ends: tell of what is left, for a moment. What is still being read ends with it."""
        for receipt in list(self._under_way.values()):
            receipt.end(code=LEFT)
        if self._thread is None and self._ended.empty():
            return
        self._leaving.set()
        self._ended.put(None)
        self._wake()
        if (thread := self._thread) is not None:
            thread.join(_EXIT_SECONDS)
        else:  # no thread is started any more
            self._tell_all()

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
        """Until nothing more comes. What came as we were about to end, and found us there, is looked for after that."""
        while True:
            self._tell_all()
            with self._lock:
                self._thread = None
            if self._ended.empty() or not self._go_on():
                return

    def _go_on(self) -> bool:
        """Whether no other thread tells by now, so that this one does."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.current_thread()
            return self._thread is threading.current_thread()

    def _tell_all(self) -> None:
        """Tell of what has ended until nothing more comes."""
        while batch := self._gathered():
            by_connector: dict[tuple[str, str], list[dict[str, Any]]] = {}
            for of, told in batch:
                by_connector.setdefault((of.base, of.authorization), []).append(told)
            for (base, authorization), ends in by_connector.items():
                self._tell(base, authorization, ends)

    def _gathered(self) -> list[_Ended]:
        """What has ended by now, at least one; none where nothing has for a while, or where we leave."""
        found: list[_Ended | None] = []
        with suppress(Empty):
            found.append(self._ended.get(timeout=0 if self._leaving.is_set() else _IDLE_SECONDS))
            self._leaving.wait(_GATHER_SECONDS)
            while len(found) < _TOGETHER:
                found.append(self._ended.get_nowait())
        return [one for one in found if one is not None]

    def _tell(self, base: str, authorization: str, ends: Sequence[Mapping[str, Any]]) -> None:
        """Tell a connector, again where that may help."""
        for pause in (*_PAUSES, 0.0):
            seconds = _EXIT_SECONDS if self._leaving.is_set() else _CALL_SECONDS
            try:
                if _posted(f"{base}/receipts", authorization, ends, seconds=seconds).get("unknown"):
                    self._warn("it has no such agreement")
                break
            except Exception as error:  # noqa: BLE001  whatever it is, no reader is to hear of it
                if not (isinstance(error, HanseError) and passes(error)) or not pause or self._leaving.is_set():
                    self._warn(str(error) if isinstance(error, HanseError) else type(error).__name__)
                    break
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


def _posted(url: str, authorization: str, ends: Sequence[Mapping[str, Any]], *, seconds: float) -> Mapping[str, Any]:
    headers = {"authorization": authorization, "content-type": _JSON}
    body = json.dumps({"ends": ends}).encode()
    answer = json.loads(_wire.whole(Request("POST", url, headers, body, seconds, accept=_JSON), most=_ANSWER_MAX))
    if not isinstance(answer, dict):
        raise Broken(f"expected what was recorded from {url}, came something else")
    return answer


_teller = _Teller()


def _anew() -> None:
    """A forked process tells of its own reads: its parent has the others, and the thread."""
    global _teller
    _teller = _Teller()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_anew)


@atexit.register
def _leave() -> None:
    _teller.leave()
