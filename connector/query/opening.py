"""An engine and what one job may read with it: files pinned, everything else fenced off. Runs in a worker only.

Who asks once often asks again of the same data. A worker that has seen that opens the next engine for these files
while nobody waits, and the next job finds files, footers and fence ready; its SQL is checked like any other's.
"""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from connector.query import engine
from connector.query.job import Job, Limits, Relation, fields_of

_AHEAD_FILES = 64  # no more are held open for a job that may never come


class Opening:
    """Opened step by step: `pin` files, `fence` an engine around them; or `relations`, all of it. `close` it."""

    def __init__(self, limits: Limits, folder: Path, *, desk: socket.socket | None = None, key: str = "") -> None:
        """`folder` is private and need not exist yet; over `desk` blocks of objects are borrowed."""
        self.limits, self.folder, self.desk, self.key = limits, folder, desk, key
        self.files: list[engine.Files] = []
        self.con: Any = None

    def pin(self, relation: Relation) -> engine.Files:
        """The next relation's files, opened; VersionChanged where they are not those that were registered."""
        number = len(self.files)
        found = engine.open_files(relation, self.folder / str(number), number=number, desk=self.desk)
        self.files.append(found)
        found.check_unchanged()
        return found

    def fence(self, con: Any, *more: str, followed: bool = False) -> Any:
        """Let the engine read what is pinned, and `more` paths, and nothing else. `followed`: it says how far it is."""
        self.con = con
        engine.lend(con, self.files)
        temp = self.folder / "temp" if self.limits.temp_mb else None
        if temp is not None:
            temp.mkdir(mode=0o700, parents=True)
        paths = [path for found in self.files for path in found.paths]
        far = any(not isinstance(found, engine.Opened) for found in self.files)
        engine.fence(con, paths=[*paths, *more], limits=self.limits, temp=temp, followed=followed, far=far)
        return con

    def relations(self, relations: Mapping[str, Relation], con: Any) -> None:
        """All relations that are files, readable under their names."""
        for relation in relations.values():
            if relation.blob is None:
                self.pin(relation)
        self.attach(relations, con)

    def attach(self, relations: Mapping[str, Relation], con: Any) -> None:
        """The same in an engine for files that are pinned already."""
        named = {name: relation for name, relation in relations.items() if relation.blob is None}
        self.fence(con)
        for (name, relation), found in zip(named.items(), self.files, strict=True):
            if relation.loaded:
                engine.load(con, name, found)
            else:
                engine.attach(con, name, relation, found)

    def current(self) -> bool:
        """Whether each file's name still leads to what is pinned."""
        return all(isinstance(found, engine.Opened) and found.current() for found in self.files)

    def let_go(self) -> None:
        """Close the engine, and keep the files."""
        con, self.con = self.con, None
        if con is not None:
            with suppress(Exception):
                con.close()

    def close(self) -> None:
        for found in self.files:
            with suppress(Exception):
                found.close()
        self.let_go()
        shutil.rmtree(self.folder, ignore_errors=True)


def key_of(job: Job) -> str:
    """What an engine that is opened ahead of this job has to be opened for; empty where none can be."""
    named = [(name, relation) for name, relation in job.relations.items() if relation.blob is None]
    files: Sequence[Any] = [file for _, relation in named for file in relation.files]
    if job.kind != "query" or not 0 < len(files) <= _AHEAD_FILES or any(file.get("etag") for file in files):
        return ""
    limits = (job.limits.memory_mb, job.limits.temp_mb, job.limits.threads)
    return json.dumps([limits, [(name, fields_of(relation)) for name, relation in named]], default=dict)
