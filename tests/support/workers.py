"""Worker processes with patience, for tests of what is there after a job: no stall of the machine takes it away.

A worker in use lets go of what it keeps after five seconds without a job, and is killed when it has not stopped, or
cleaned up, within one. Of both a machine that stands still for a moment knows nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest

from connector.engine.pool import pool, worker_process
from tests.support.own_name import changed

_LONG = 60.0
_STARTED = ("-m", "connector.engine.worker")
# As the module itself begins; the libraries come after the process has shut itself in.
_PROGRAM = """
from connector.engine.worker import __main__ as worker
confine = worker.confine

def shut_in(**allowed):
    confine(**allowed)
    from connector.engine.worker import memory_limits
    memory_limits.REST = %s

worker.confine = shut_in
worker.main()
"""


@contextmanager
def patient(*, in_stopping: bool = True) -> Iterator[None]:
    """Workers that are started meanwhile keep what they have for a minute, and have a minute to stop."""
    with resting(_LONG), pytest.MonkeyPatch.context() as patch:
        if in_stopping:
            patch.setattr(worker_process, "GRACE", _LONG)
        patch.setattr(pool, "_GIVEN_BACK", _LONG + 1)
        yield


def resting(seconds: float) -> AbstractContextManager[None]:
    """Workers that are started meanwhile let go of what they keep after so many seconds without a job."""
    return running_as(_PROGRAM % seconds)


@contextmanager
def running_as(program: str) -> Iterator[None]:
    """Workers that are started meanwhile run this program, which is to end with `worker.main()`."""
    start = pool.asyncio.create_subprocess_exec

    async def started(executable: str, *arguments: str, **more: Any) -> asyncio.subprocess.Process:
        if arguments[:2] == _STARTED:
            arguments = ("-c", program, *arguments[2:])
        return await start(executable, *arguments, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "asyncio", changed(pool.asyncio, create_subprocess_exec=started))
        yield
