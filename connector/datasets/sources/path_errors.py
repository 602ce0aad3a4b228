"""Turns an `OSError` about an owner's path into the answer to its registration: what was expected and what to do.

The only module that maps errno values to messages. Imports only the standard library and the errors: the worker process
loads it too.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from connector.errors import ConnectorError, PathRefused, Unavailable

PATH_CHARACTERS_MAX = 4_096
_SHOWN_CHARACTERS = 300
_Advice = tuple[str, str]
_MISSING: _Advice = ("a file or directory that exists", "check the path")
_PERMISSION: _Advice = (
    "a path that the connector may read",
    "check its permissions: the connector's user must read it and enter its folders",
)
_NOT_A_FILE: _Advice = ("a regular file or a directory", "name a data file")
_DISK: _Advice = ("a file system that can be read", "check the disk and how it is mounted, then try again")
_ADVICE: Mapping[int, _Advice] = {
    errno.ENOENT: _MISSING,
    errno.ENOTDIR: _MISSING,
    errno.ENAMETOOLONG: (
        "a path of at most 4,096 bytes, and at most 255 bytes between two slashes",
        "shorten its names",
    ),
    errno.ELOOP: ("a path whose links come to an end", "name the file or directory that the links stand for"),
    errno.EACCES: _PERMISSION,
    errno.EPERM: _PERMISSION,
    errno.EISDIR: _NOT_A_FILE,
    errno.ENXIO: _NOT_A_FILE,
    errno.ENODEV: _NOT_A_FILE,
    errno.EOPNOTSUPP: _NOT_A_FILE,
    errno.EINVAL: ("a path that the file system takes", "rename the file or directory"),
    errno.EILSEQ: ("a path that the file system takes", "rename the file or directory"),
}
_SHORT_OF_RESOURCES = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EAGAIN))


def path_refusal(error: OSError, path: str) -> ConnectorError:
    """Return the answer to a registration of `path` that ended with `error`: PathRefused, or Unavailable where this
    machine lacks a resource."""
    reason = error.strerror or type(error).__name__
    if error.errno in _SHORT_OF_RESOURCES:
        return Unavailable(
            f"the connector cannot open {_format_path(path)} now ({reason}); try again", code="file_unavailable"
        )
    expected, advice = _ADVICE.get(error.errno or 0, _DISK)
    return PathRefused(f"expected {expected}, got {_format_path(path)} ({reason}{_format_base(path)}); {advice}")


@contextmanager
def path_refusals(path: str) -> Iterator[None]:
    """Turn each `OSError` of the block into the answer to a registration of `path`."""
    try:
        yield
    except OSError as error:
        raise path_refusal(error, path) from error


def check_path_text(path: str) -> None:
    """Check the text of a path.

    Raises: PathRefused for a text that no system call accepts as a path.
    """
    if not path or "\x00" in path or len(path) > PATH_CHARACTERS_MAX:
        raise PathRefused(
            f"expected a path of 1 to {PATH_CHARACTERS_MAX:,} characters without NUL, got {_format_path(path)}"
        )
    try:
        os.fsencode(path)
    except UnicodeEncodeError as error:
        raise PathRefused(
            f"expected a path that can be written as UTF-8, got {_format_path(path)}; rename the file or directory"
        ) from error


def _format_path(path: str) -> str:
    return repr(path if len(path) <= _SHOWN_CHARACTERS else f"{path[:_SHOWN_CHARACTERS]}...")


def _format_base(path: str) -> str:
    return "" if os.path.isabs(path) else f", looked for in {os.getcwd()}, where the connector was started"
