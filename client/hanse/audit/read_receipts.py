"""Receipts: report the result of each read to the reader's own connector, after the read.

The owner's log records what was sent. The receipt stands in the reader's log, where the owner cannot change it: a
record that the owner omits or enlarges contradicts it (`hanse audit match`, decision 55).

A thread sends them, many in one call. The caller never waits for it, gets no error, and at most `_WAITING_MAX` receipts
are kept; the first failure issues a warning. Each has its own id, so that a repeated one counts once. Knows no streams.
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
from hanse._transport.workload import RenewedToken
from hanse.errors import Broken, HanseError, NotFound
from hanse.retry import is_temporary

LEFT = "left"  # code of a read that the reader ended early
_WAITING_MAX = 4096  # receipts of about 700 bytes
_BATCH = 256  # receipts in one call: the connector's limit
_GATHER_SECONDS = 0.2  # other reads may end at the same time
_CALL_SECONDS = 10.0
_PAUSES = (0.5, 2.0, 8.0, 30.0)  # before another attempt: a restarted connector answers by then
_EXIT_SECONDS = 1.5  # that a process waits before it ends
_SLOW = "it did not answer in time before the process ended"
_TEXTS = {"status": 64, "code": 64, "digest": 200}  # members of an owner's end record, and their longest texts
_NUMBER_MAX = 2**53  # the largest exact integer in a log


@dataclass(frozen=True, slots=True)
class Receipts:
    """The receipts of reads under one agreement: the connector to report to, the token, and common members."""

    url: str
    token: str | RenewedToken
    about: Mapping[str, str]  # agreement and transfer

    def begin(self, read_id: str) -> Receipt:
        """Begin the receipt of a read; `read_id` is the owner's id of it."""
        receipt = Receipt(self, _check_printable(read_id, 128))
        _reporter.begin(receipt)
        return receipt


class Receipt:
    """The rows of one read so far. The reader counts `rows` and calls `end`. It is reported once, even if ended twice,
    or in a forked process."""

    __slots__ = ("begun", "id", "of", "read_id", "rows")

    def __init__(self, of: Receipts, read_id: str) -> None:
        self.of, self.read_id = of, read_id
        self.id = secrets.token_hex(16)
        self.rows = 0
        self.begun = time.monotonic()

    def end(self, record: Mapping[str, Any] | None = None, *, code: str = "", digest: str = "") -> None:
        """End the read: with the owner's end record, or with a code. Safe to call anywhere, also from the garbage
        collector. `digest`: computed over the bytes before that record; empty if not computed."""
        _reporter.end(self, record, code, digest)

    def to_report(self, record: Mapping[str, Any] | None, code: str, digest: str = "") -> dict[str, Any]:
        """Return the body that the connector accepts."""
        # Rounded up: the owner may have recorded the end at the start.
        seconds = math.ceil(time.monotonic() - self.begun)
        report = {**self.of.about, "id": self.id, "read": self.read_id, "rows": self.rows, "seconds": seconds}
        if record is None:
            return report | {"code": _check_printable(code, 64)}
        if digest:
            report["digest"] = digest
        return report | {
            "read": self.read_id or _check_printable(str(record.get("query", "")), 128),
            "end": _clean_record(record),
        }


def _clean_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the valid members of an end record: an owner may write anything."""
    texts = {name: _check_printable(str(record.get(name, "")), most) for name, most in _TEXTS.items()}
    numbers = {name: record.get(name) for name in ("rows", "bytes")}
    counts = {name: value for name, value in numbers.items() if type(value) is int and 0 <= value <= _NUMBER_MAX}
    return {name: text for name, text in texts.items() if text} | counts


def _check_printable(text: str, most: int) -> str:
    """Return the text if it consists of at most `most` visible ASCII characters, else an empty one."""
    return text if len(text) <= most and all("!" <= character <= "~" for character in text) else ""


_Ended = tuple[Receipts, dict[str, Any]]


class _Reporter:
    """The open reads of one process, those that have ended, and the thread that reports them.

    The garbage collector may end a read at any point and in any thread: hence a reentrant queue, and a lock that is
    never waited for.
    """

    def __init__(self) -> None:
        self._open: dict[str, Receipt] = {}
        self._ended: SimpleQueue[_Ended] = SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._leaving = threading.Event()
        self._until = 0.0  # at exit: when to stop waiting
        self._prepared = self._warned = False

    def begin(self, receipt: Receipt) -> None:
        self._prepare_to_leave()
        self._open[receipt.id] = receipt

    def end(self, receipt: Receipt, record: Mapping[str, Any] | None, code: str, digest: str) -> None:
        if self._open.pop(receipt.id, None) is None:  # ended before, or begun in the parent process
            return
        if receipt.of.url in _unsupported:
            return
        if self._ended.qsize() >= _WAITING_MAX:
            self._warn("too many receipts are waiting")
            return
        self._ended.put((receipt.of, receipt.to_report(record, code, digest)))
        self._wake()

    def leave(self) -> None:
        """Report what is left before the process ends, for a moment. Open reads end with it."""
        if (
            self._leaving.is_set() and self._thread is not None
        ):  # `multiprocessing`'s finalizer or ours has waited already
            return
        for receipt in list(self._open.values()):
            receipt.end(code=LEFT)
        if self._thread is None and self._ended.empty():
            return
        self._until = time.monotonic() + _EXIT_SECONDS
        self._leaving.set()
        self._wake()
        with suppress(KeyboardInterrupt):  # an interrupt ends the waiting
            if (thread := self._thread) is not None:
                thread.join(_EXIT_SECONDS)
            else:  # no thread can be started any more
                self._send_all()
            if not self._ended.empty() or (thread is not None and thread.is_alive()):
                self._warn(_SLOW)

    def _prepare_to_leave(self) -> None:
        """Register with `multiprocessing`: its forked processes (a DataLoader's workers) end without `atexit`."""
        if not self._prepared:
            self._prepared = True
            if (util := sys.modules.get("multiprocessing.util")) is not None:
                util.Finalize(None, self.leave, exitpriority=1)

    def _wake(self) -> None:
        """Ensure that a thread sends. The holder of the lock starts one, or looks at the queue once more."""
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
        """Send until the queue is empty; then end, so that a fork leaves no idle thread. Look once more after that for
        receipts that were put meanwhile."""
        while True:
            self._send_all()
            with self._lock:
                self._thread = None
            if self._ended.empty() or self._is_late() or not self._keeps_running():
                return

    def _keeps_running(self) -> bool:
        """Return whether no other thread sends by now, so that this one continues."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.current_thread()
            return self._thread is threading.current_thread()

    def _send_all(self) -> None:
        """Send what has ended until the queue is empty, or it is late."""
        while batch := self._gather():
            by_connector: dict[tuple[str, str | RenewedToken], list[dict[str, Any]]] = {}
            for of, report in batch:
                by_connector.setdefault((of.url, of.token), []).append(report)
            for (url, token), ends in by_connector.items():
                self._send(url, token, ends)

    def _gather(self) -> list[_Ended]:
        """Return the ended reads, with those that end at the same time; none if the queue is empty, or it is late."""
        found: list[_Ended] = []
        with suppress(Empty):
            if not self._is_late():
                found.append(self._ended.get_nowait())
                self._leaving.wait(_GATHER_SECONDS)
            while found and len(found) < _BATCH:
                found.append(self._ended.get_nowait())
        return found

    def _is_late(self) -> bool:
        """Return whether the process is ending, and has waited long enough."""
        return self._leaving.is_set() and time.monotonic() >= self._until

    def _send(self, url: str, token: str | RenewedToken, ends: Sequence[Mapping[str, Any]]) -> None:
        """Send to a connector, with further attempts if they may help. At exit the first failure is the last."""
        for pause in (*_PAUSES, 0.0):
            if url in _unsupported:
                return
            if self._is_late():
                self._warn(_SLOW)
                return
            seconds = self._until - time.monotonic() if self._leaving.is_set() else _CALL_SECONDS
            try:
                if _post(url, token, ends, seconds=max(seconds, 0.1)).get("unknown"):
                    self._warn("it has no such agreement")
                return
            except NotFound:  # an older connector without receipts
                _unsupported.add(url)
            except Exception as error:  # noqa: BLE001  no error may reach the reader
                passing = isinstance(error, HanseError) and is_temporary(error)
                if not passing or not pause or self._leaving.is_set():
                    self._until = 0.0
                    self._warn(str(error) if isinstance(error, HanseError) else type(error).__name__)
                    return
                self._leaving.wait(pause)

    def _warn(self, why: str) -> None:
        if not self._warned:
            self._warned = True
            with suppress(Exception):  # if warnings are errors
                warnings.warn(
                    f"could not report every read to the connector ({why}): its log lacks receipts. The received rows "
                    "are complete all the same",
                    RuntimeWarning,
                    stacklevel=2,
                )


def _post(
    url: str, token: str | RenewedToken, ends: Sequence[Mapping[str, Any]], *, seconds: float
) -> Mapping[str, Any]:
    api = Api(url, token, seconds=seconds)  # not the reader's: it may be closed by now, or a parent's
    with closing(api):
        answer = api.post("/receipts", {"ends": ends})
    if not isinstance(answer, dict):
        raise Broken(f"expected the recorded receipts from {url}, got something else")
    return answer


_unsupported = set[str]()  # connectors without receipts: skipped from now on, also in forked processes
_reporter = _Reporter()


def _reset_after_fork() -> None:
    """Start empty in a forked process: the parent has the other reads, and the thread."""
    global _reporter
    _reporter = _Reporter()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)


@atexit.register
def leave() -> None:
    """Report what is left, as at exit: for a caller that stops the connector before that."""
    _reporter.leave()
