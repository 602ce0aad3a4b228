"""The process in which queries run: `python -m connector.engine.worker <control fd> <private folder> <allowed>`.

It holds no credentials and can be killed at any time; `connector.engine.worker.session` runs its jobs. `allowed` is
JSON: {"readable": [...], "writable": [...]} confines the process to these paths; null does not confine it.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import sys
from pathlib import Path

from connector.engine.pool import crash_report
from connector.engine.pool.sandbox import confine


class WithoutPandas:
    """Import hook that hides pandas: Arrow would load it to test the type of a list, for a third of the start time."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        if fullname == "pandas":
            raise ModuleNotFoundError("expected no use of pandas in a worker", name=fullname)


def main() -> None:
    """Serve until the connector ends. On failure report the error and end at once."""
    crash_report.begin()
    try:
        serve()
    except BaseException as error:  # noqa: BLE001  the interpreter's own end would wait for the threads of sessions
        crash_report.tell(error)
        os._exit(1)


def serve() -> None:
    """Confine the process, load the engine and Arrow, then serve until the connector ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the connector; we end when it does
    descriptor, folder, allowed = int(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    control = socket.socket(fileno=descriptor)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 16_384)), hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    null = os.open(os.devnull, os.O_WRONLY)
    if allowed is not None:
        confine(readable=allowed["readable"], writable=[*allowed["writable"], str(folder)])
    sys.meta_path.insert(0, WithoutPandas())
    # Imported only now: the libraries start threads, which must be confined too.
    import pyarrow as pa

    from connector.engine.worker.session import Worker

    pa.set_cpu_count(min(4, os.cpu_count() or 1))  # for jobs that may use threads
    pa.set_io_thread_count(1)
    worker = Worker(control, folder)
    worker.warm_up()
    crash_report.only_ours(null)
    worker.run()


if __name__ == "__main__":
    main()
