"""Ports that are free now."""

from __future__ import annotations

import random
import socket


def free_range(count: int) -> int:
    """The first of `count` neighbouring ports that nobody listens on. Two who ask at once rarely get the same."""
    starts = range(20_000, 32_000, count)
    begin = random.randrange(len(starts))
    for start in (*starts[begin:], *starts[:begin]):
        held = []
        try:
            for port in range(start, start + count):
                probe = socket.socket()
                held.append(probe)
                probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        else:
            return start
        finally:
            for probe in held:
                probe.close()
    raise RuntimeError(f"no {count} neighbouring ports are free")
