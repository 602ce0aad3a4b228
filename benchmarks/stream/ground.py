"""The same ground for all who are measured: memory that the machine holds already.

A virtual machine's host may take back what the guest has freed, within seconds. Whoever touches it next pays for that
with two seconds a gigabyte, where it is a tenth of one else: more than any of the reads here take. Who that is would be
chance. So before each read so much memory is touched and freed as it may need, whoever reads.
"""

from __future__ import annotations

import mmap

import numpy as np

_SPARE = 2**30


def warm(nbytes: int) -> None:
    """Touch `nbytes` and a gigabyte to spare, and free them: the kernel gives first what it was given last."""
    with mmap.mmap(-1, nbytes + _SPARE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as pages:
        pages.madvise(mmap.MADV_HUGEPAGE)
        np.frombuffer(pages, np.uint8)[:: mmap.PAGESIZE] = 1
