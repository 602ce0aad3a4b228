"""Lock files: a folder or a database belongs to a single process for as long as that process lives."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import TextIO

from connector.errors import Invalid, WrongState


def acquire_lock(path: Path, setting: str, otherwise: str, *, service: str = "connector") -> TextIO:
    """Open the file and lock it until it is closed or this process ends.

    `setting` names the setting that chose the path, and `otherwise` what another `service` could use instead; both
    are for the message. Raises: WrongState if another process holds the lock, Invalid if the file cannot be created.
    """
    with contextlib.ExitStack() as opened:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = opened.enter_context(path.open("a+"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if not os.path.exists(path):  # no process can hold it; true also for a folder that we cannot search
                raise Invalid(
                    f"{setting}: {path} cannot be written ({error.strerror}); make room on its disk, or let the user "
                    "of this program write to its folder"
                ) from None
            raise WrongState(
                f"{setting}: {path} cannot be locked ({error.strerror}); perhaps another {service} serves from there: "
                f"stop that {service}, or {otherwise} of its own"
            ) from None
        opened.pop_all()
    return file
