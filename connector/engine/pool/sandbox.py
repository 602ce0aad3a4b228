"""Landlock sandbox of a worker (Linux 5.13+): the kernel lets it open only what it needs.

The gate refuses queries that name files, and the engine's settings refuse to open them. If both fail, this third
barrier still protects keys, other datasets, the network, and other processes from signals. Standard library only.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

_CREATE, _ADD, _RESTRICT = 444, 445, 446
_NO_NEW_PRIVILEGES = 38
_READ = 1 << 0 | 1 << 2 | 1 << 3  # execute (map a library), read a file, list a directory
_FILE_ONLY = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 14 | 1 << 15
_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}  # file-system rights that a version of the interface knows; 16 from version 5
_ENVIRONMENT = ("PATH", "LANG", "PYTHONPATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
_SYSTEM = (
    "/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime", "/dev/null", "/dev/urandom", "/proc/self",
    "/proc/meminfo", "/proc/cpuinfo", "/sys/fs/cgroup", "/sys/devices/system/cpu",
)  # fmt: skip


def confine(*, readable: Sequence[str], writable: Sequence[str]) -> bool:
    """Confine this thread and its later children to these paths, without a network. Return whether the kernel supports
    it.

    Call it before other threads exist.

    Raises: OSError where the kernel supports it but refused.
    """
    version = _call(_CREATE, None, 0, 1)
    if version < 1:
        return False
    rights = (1 << _RIGHTS.get(version, 16)) - 1
    networks = 3 if version >= 4 else 0
    scopes = 3 if version >= 6 else 0
    attributes = struct.pack("<QQQ", rights, networks, scopes)[: 8 if version < 4 else 16 if version < 6 else 24]
    ruleset = _checked(_call(_CREATE, attributes, len(attributes), 0))
    try:
        for path in (*_SYSTEM, *_own_code(), *readable):
            _allow(ruleset, path, _READ & rights)
        for path in writable:
            _allow(ruleset, path, rights)
        _checked(ctypes.CDLL(None, use_errno=True).prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0))
        _checked(_call(_RESTRICT, ruleset, 0))
    finally:
        os.close(ruleset)
    return True


def environment(**more: str) -> dict[str, str]:
    """Return the environment for a confined process, and `more`: no secrets, no settings."""
    return {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ} | more


class Held(NamedTuple):
    """Memory of a process in bytes: resident; the part in mapped files and shared memory; mapped for writing."""

    resident: int
    files: int
    data: int

    @property
    def own(self) -> int:
        """Resident memory that the kernel cannot take back."""
        return self.resident - self.files


def memory_of(pid: int) -> Held:
    """Return the memory of a process; zeros if it does not exist."""
    try:
        with open(f"/proc/{pid}/statm", "rb", buffering=0) as statm:
            _, resident, files, _, _, data, _ = map(int, statm.read(256).split())
    except (OSError, ValueError):
        return Held(0, 0, 0)
    page = os.sysconf("SC_PAGE_SIZE")
    return Held(resident * page, files * page, data * page)


def _own_code() -> Iterable[str]:
    """Return where the interpreter, its libraries and our packages are; no working directory."""
    yield from (sys.prefix, sys.base_prefix, sys.exec_prefix)
    for entry in sys.path:
        if entry and not entry.startswith((sys.prefix, sys.base_prefix)):
            yield from (str(Path(entry, package)) for package in ("connector", "policies"))


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # a path that appears later needs a new worker (`allowed_paths.Roots`)
    try:
        if not stat.S_ISDIR(os.fstat(opened).st_mode):
            rights &= _FILE_ONLY
        _checked(_call(_ADD, ruleset, 1, struct.pack("<Qi", rights, opened), 0))
    finally:
        os.close(opened)


def _call(number: int, *arguments: int | bytes | None) -> int:
    plain = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    return int(ctypes.CDLL(None, use_errno=True).syscall(ctypes.c_long(number), *plain))


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
