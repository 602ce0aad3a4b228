"""The process in which queries run: `python -m connector.query.worker <control fd> <private folder>`.

It holds nothing that is worth stealing and can be killed at any time; `connector.query.session` is its inside.
"""

from __future__ import annotations

import resource
import socket
import sys
from pathlib import Path

import pyarrow as pa

from connector.query.session import Worker


def main() -> None:
    """Start: load the engine and Arrow, then serve until the connector goes."""
    control = socket.socket(fileno=int(sys.argv[1]))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 16_384)), hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    Worker(control, Path(sys.argv[2])).run()


if __name__ == "__main__":
    main()
