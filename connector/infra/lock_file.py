"""Files that say whose a folder or a database is, for as long as a process lives."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import TextIO

from connector.errors import BadInput, Conflict


def locked(path: Path, setting: str, otherwise: str, *, who: str = "connector") -> TextIO:
    """The file, locked until it is closed or this process ends. Conflict where another one has it,
    BadInput where there is none and none can be made."""
    with contextlib.ExitStack() as opened:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = opened.enter_context(path.open("a+"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if not os.path.exists(path):  # nobody serves from there; also of a folder that we may not look into
                raise BadInput(
                    f"{setting}: {path} cannot be written ({error.strerror}); make room on its disk, or let the user "
                    "of this program write to its folder"
                ) from None
            raise Conflict(
                f"{setting}: {path} cannot be locked ({error.strerror}), as where another {who} serves from there; "
                f"stop that one, or {otherwise} of its own"
            ) from None
        opened.pop_all()
    return file
