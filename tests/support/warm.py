"""Servers of ours forked from a process that has imported all that one needs: what takes most of a start is done once.

For tests whose subject is not how a process comes up: whoever is forked then runs the same program as the command line
would, with arguments, environment, folder, output and session of its own, is our child, and ends as any process does.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from ctypes import CDLL
from functools import cache
from typing import Any

_HAS = ("connector.server", "catalogue.app", "alembic.command", "typer", "uvloop")
_MESSAGE_MAX = 2**17
_ADOPTING = 36  # PR_SET_CHILD_SUBREAPER


class Forked:
    """A process, with what tests want of a `subprocess.Popen`."""

    def __init__(self, args: Sequence[str], *, env: Mapping[str, str], stdout: Any, **_: Any) -> None:
        """Run Python with these arguments, `-m module ...` or `-c code`; standard error goes where output goes."""
        self.args = args
        self.returncode: int | None = None
        self.pid = _source().fork({"args": [*args][1:], "env": dict(env), "cwd": os.getcwd()}, stdout.fileno())

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            with os.fdopen(os.pidfd_open(self.pid), "rb", 0) as end:
                ended = select.poll()
                ended.register(end, select.POLLIN)
                if not ended.poll(None if timeout is None else timeout * 1000):
                    raise subprocess.TimeoutExpired(self.args, timeout or 0)
        found = self.poll()
        assert found is not None
        return found

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class _Source:
    """The process that others are forked from, as this one sees it. It ends with us."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip

    def fork(self, what: Mapping[str, Any], output: int) -> int:
        """The id of a new process, which is a child of ours: left by its parent, it goes to who adopts."""
        with self._turn:
            _adopt(True)
            try:
                socket.send_fds(self._control, [json.dumps(what).encode()], [output])
                said = self._control.recv(64)
            finally:
                _adopt(False)
        if not said:
            raise RuntimeError(f"what forks servers has ended with {self._process.wait()}: see its standard error")
        return int(said)


@cache
def _source() -> _Source:
    return _Source()


def _adopt(ours: bool) -> None:
    """Whether those whose parents end become children of this process."""
    if CDLL(None, use_errno=True).prctl(_ADOPTING, int(ours), 0, 0, 0):
        raise OSError("prctl refuses PR_SET_CHILD_SUBREAPER")


def _serve(control: socket.socket) -> list[str]:
    """Fork whom we are told to, until nobody is there to tell; in a forked process: the arguments that it is to run."""
    while True:
        said, (*given,), _, _ = socket.recv_fds(control, _MESSAGE_MAX, 1)
        if not said:
            os._exit(0)
        reading, writing = os.pipe()
        between = os.fork()
        if not between and os.fork():
            os._exit(0)
        if not between:
            os.close(reading)
            os.write(writing, str(os.getpid()).encode())
            os.close(writing)
            control.close()
            return _become(json.loads(said), given[0])
        os.close(writing)
        os.close(given[0])
        os.waitpid(between, 0)
        control.send(os.read(reading, 64))
        os.close(reading)


def _become(what: Mapping[str, Any], output: int) -> list[str]:
    os.setsid()
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    os.environ.clear()
    os.environ.update(what["env"])
    os.chdir(what["cwd"])
    args: list[str] = what["args"]
    return args


def _run(how: str, what: str, *rest: str) -> None:
    """As `python -m module ...` or `python -c code` would."""
    sys.argv = ["-c" if how == "-c" else what, *rest]
    if how == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        exec(what, {"__name__": "__main__"})


if __name__ == "__main__":
    for name in _HAS:
        importlib.import_module(name)
    if len(os.listdir("/proc/self/task")) > 1:
        raise RuntimeError("an import has started a thread, which nobody who is forked would have")
    gc.collect()
    gc.freeze()
    _run(*_serve(socket.socket(fileno=int(sys.argv[1]))))
