"""Files of a source: which paths are allowed, and whether a file is still the registered one.

A file is pinned at registration by device, inode, size, modification time and inode change time. It is opened first and
then compared, so that exactly the checked file is read. The owner of a file cannot set its inode change time back.
Knows nothing of formats and imports only the standard library: the worker process loads it too.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import re
import stat
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from connector.datasets.sources.path_errors import check_path_text, path_refusal, path_refusals
from connector.errors import ConnectorError, PathRefused, SourceUnreadable, Unavailable, VersionChanged
from policies.contracts.columns import quote_identifier

FILES_MAX = 12_000  # each is an open descriptor of a worker, which may have 16,384
_CHUNK = 2**20
_GONE = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.ESTALE))  # or something else lies there
PATTERN = re.compile(r"[*?\[\]{}=\\\r\n]")  # patterns of the engine, and ends of names and values
_OF_DISKS = frozenset(("lost+found", "System Volume Information", "$RECYCLE.BIN"))  # the disk's own folders
_CLOCK_STEP_NS = 20_000_000  # file times move on by a tick of the kernel's clock, at most 10 ms
LOOK_SECONDS = 0.03  # longer than that


@dataclass(frozen=True, slots=True)
class FileRef:
    """A registered file. `name` is its place under the dataset's directory (`year=2024/part-0.parquet`).

    An object in a store has a path with a scheme, and an ETag (and a version, if its bucket keeps versions) instead of
    device, inode and change time. `ours`: the connector made the file and removes it when it is no longer needed.
    """

    path: str
    dev: int
    inode: int
    size: int
    mtime_ns: int
    name: str = ""
    ctime_ns: int = 0  # 0: registered before this field existed
    etag: str = ""
    version: str = ""
    ours: bool = False

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> FileRef:
        return cls(**value)


def file_ref(path: str, *, roots: Sequence[Path], name: str = "") -> FileRef:
    """Pin one file, in these steps: 1. the path has a printable length and no NUL; 2. it exists, with links resolved;
    3. it lies under a root of the operator; 4. the opened file is a regular file.

    Raises: PathRefused where a step fails.
    """
    return _pin(resolve(path, roots=roots), path, name)  # 1-3


def own_ref(path: str, *, folder: Path) -> FileRef:
    """Pin a file that a worker of this connector has just written into a private folder.

    Does not wait for the disk: no other process has mapped the file.
    """
    real = resolve(path, roots=[folder])
    return _ref(str(real), _stat_regular_file(real, path, settle=False), real.name)


def _pin(real: Path, asked: str, name: str, *, settled: int | None = None) -> FileRef:
    """Pin the file at a path without links that lies under a root. `settled`: the device that was just synced."""
    try:
        str(real).encode()
    except UnicodeEncodeError:
        raise PathRefused(
            f"expected files and folders whose names are UTF-8, came {str(real)!r}, as of another encoding; rename it"
        ) from None
    return _ref(str(real), _stat_regular_file(real, asked, settled=settled), name or real.name)


def _stat_regular_file(real: Path, asked: str, *, settle: bool = True, settled: int | None = None) -> os.stat_result:
    """Return the status of the opened file, after writes through maps are on disk.

    Raises: PathRefused where it is not a regular file.
    """
    descriptor = _open_file(real, asked)
    try:
        found = os.fstat(descriptor)
        if settle and found.st_dev != settled:
            _sync_file(descriptor)
            found = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    if not stat.S_ISREG(found.st_mode):  # 4
        raise PathRefused(f"expected a regular file, came {_kind(found.st_mode)}: {asked!r}; name a data file")
    return found


def resolve(path: str, *, roots: Sequence[Path]) -> Path:
    """Return the real path of `path`, which must exist and lie under one of `roots`."""
    check_path_text(path)
    with path_refusals(path):
        real = Path(os.path.realpath(path, strict=True))
    if not any(real.is_relative_to(os.path.realpath(root)) for root in roots):
        allowed = ", ".join(str(root) for root in roots) or "none is configured"
        raise PathRefused(
            f"{path!r} lies outside the directories that data may be registered from ({allowed}); "
            "move the file there, or let the operator add its directory to HANSE_SOURCE_ROOTS"
        )
    return real


def refuse_own_files(places: Sequence[Path], files: tuple[FileRef, ...]) -> tuple[FileRef, ...]:
    """Return the files unless one is, or lies under, one of the connector's own places.

    A user who may register data could otherwise read its keys. Files are also compared by device and inode, because a
    place may be mounted twice, and a file may have another name or be a link. Raises: PathRefused.
    """
    own = {_identity(inner) for place in places for inner in (place, *_list_keys(place))} - {None}
    known: dict[Path, bool] = {}
    path = find_within(places, (file.path for file in files)) or next(
        (file.path for file in files if (file.dev, file.inode) in own or _lies_in(own, Path(file.path).parent, known)),
        "",
    )
    if path:
        raise PathRefused(
            f"expected files of data, came one of the connector's own: {path!r}; name a directory without such, or let "
            "the operator keep HANSE_DATA_DIR, HANSE_CONVERTED_DIR and secrets outside of HANSE_SOURCE_ROOTS"
        )
    return files


def find_within(places: Sequence[Path], paths: Iterable[str]) -> str:
    """Return the first of these paths that is, or lies under, one of these places; empty if none does. Reads no disk of
    `paths`."""
    real = [os.path.realpath(place) for place in places]
    below = tuple(f"{place}/" for place in real)
    return next((path for path in paths if path in real or path.startswith(below)), "")


def _identity(path: Path) -> tuple[int, int] | None:
    """Return device and inode of a path; None where they cannot be read."""
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_dev, found.st_ino) if found.st_ino else None


def _list_keys(place: Path) -> list[Path]:
    """Return the key files of a place, which may be links. All else in a place is recognised by its folder."""
    try:
        return list(place.iterdir()) if place.name == "keys" else []
    except OSError:
        return []


def _lies_in(own: Collection[tuple[int, int] | None], folder: Path, known: dict[Path, bool]) -> bool:
    if folder not in known:
        above = folder != folder.parent and _lies_in(own, folder.parent, known)
        known[folder] = above or _identity(folder) in own
    return known[folder]


def files_under(path: str, *, roots: Sequence[Path], suffixes: Sequence[str]) -> tuple[FileRef, ...]:
    """Return each data file below a directory, ordered by name. Hidden files and names like `_SUCCESS` are left out."""
    top = resolve(path, roots=roots)
    if not top.is_dir():
        raise PathRefused(f"expected a directory, came a file: {path!r}")
    settled = _sync_file_system(top)
    found: list[FileRef] = []
    for file in sorted(_walk(top)):
        if file.name.lower().endswith(tuple(suffixes)):
            # Folders are not links, so only the file itself can be one.
            real = resolve(str(file), roots=roots) if file.is_symlink() else file
            found.append(_pin(real, str(file), str(file.relative_to(top)), settled=settled))
        if len(found) > FILES_MAX:
            raise PathRefused(f"expected at most {FILES_MAX} files under {path!r}; merge small files first")
    if not found:
        raise PathRefused(f"no {' or '.join(suffixes)} file under {path!r}; {_suggest_kind(top, suffixes)}")
    return tuple(found)


def others_under(path: str, *, suffixes: Sequence[str]) -> list[str]:
    """Return the files below a directory without one of these endings; none if `path` is a file."""
    top = Path(os.path.realpath(path))
    names = (os.fsencode(file.relative_to(top)).decode(errors="replace") for file in _walk(top)) if top.is_dir() else ()
    return sorted(name for name in names if not name.lower().endswith(tuple(suffixes)))


def _suggest_kind(top: Path, suffixes: Sequence[str]) -> str:
    """Return advice for a directory without files of a kind: name the kind of its files, or rename them."""
    from connector.datasets.sources import kinds_of, source  # imported here because they import this module

    names = [file.name for file in _walk(top)]
    if not names:
        return "it has no files at all, or hidden ones only; name a directory with data"
    kinds = kinds_of(names)
    if kinds and all(suffixes == source(kind).SUFFIXES for kind in kinds):
        return "give its files one of these endings"  # a single file may have other endings
    return f"name the kind that its files are of{f', as by --kind {kinds[0]}' if kinds else ''}"


def open_pinned(ref: FileRef) -> int:
    """Return a descriptor of exactly the registered file.

    Raises: VersionChanged where it is gone or changed, SourceUnreadable where it may not be read, Unavailable where the
    system cannot open it now.
    """
    try:
        descriptor = os.open(ref.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _open_error(error, ours=ref.ours) from error
    try:
        check_unchanged(descriptor, ref)
    except ConnectorError:
        os.close(descriptor)
        raise
    return descriptor


def check_unchanged(descriptor: int, ref: FileRef) -> None:
    """Check that the opened file is still the registered one.

    Raises: VersionChanged where it has changed.
    """
    try:
        status = os.fstat(descriptor)
    except OSError as error:
        raise _open_error(error) from error
    found = _ref(ref.path, status, ref.name)
    if ref.ours:  # removing it during a read changes the inode, too
        found = replace(found, ours=True, ctime_ns=found.ctime_ns if status.st_nlink else ref.ctime_ns)
    if found != ref and replace(found, ctime_ns=0) != ref:
        raise VersionChanged.of("a file of this version has changed since it was registered")


def _open_error(error: OSError, *, ours: bool = False) -> ConnectorError:
    """Return the error for a registered file that cannot be opened or checked: a change is reported only where there is
    one."""
    if ours and error.errno in (errno.ENOENT, errno.EACCES, errno.EPERM):  # another process may have the file
        return Unavailable(
            "what this dataset was converted to is not at this process of the owner's connector; try again, or let the "
            "owner give all its processes one HANSE_CONVERTED_DIR",
            code="file_unavailable",
        )
    if error.errno in _GONE:
        return VersionChanged.of("a file of this version is gone")
    if isinstance(error, PermissionError):
        return SourceUnreadable("a file of this version may not be read by the connector; check its permissions")
    return Unavailable(
        f"a file of this version cannot be opened now ({error.strerror}); try again", code="file_unavailable"
    )


def are_unchanged(files: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether each file (of `FileRef.to_json`) is as registered. Not for objects in a store."""
    try:
        for file in files:
            os.close(open_pinned(FileRef(**{key: file[key] for key in FileRef.__slots__ if key in file})))
    except (ConnectorError, OSError, TypeError):
        return False
    return True


def has_fresh_file(refs: Sequence[FileRef], *, since_ns: int, before: Sequence[FileRef] = ()) -> bool:
    """Return whether a file was written after, or just before, `since_ns`, by its own times.

    A write within one tick of the file clock would not change the times. `before` holds the files as they were more
    than a tick ago: a file with the same times as then is not fresh. So a time in the future, from another clock or set
    by a user, does not make a file fresh.
    """
    known = frozenset(before)
    return any(_written_since(ref, since_ns) and ref not in known for ref in refs)


def renew_fresh_refs(refs: Sequence[FileRef], *, roots: Sequence[Path], since_ns: int) -> tuple[FileRef, ...]:
    """Return the same files, with fresh ones pinned again. Call it `LOOK_SECONDS` after the previous look."""
    return tuple(
        file_ref(ref.path, roots=roots, name=ref.name) if _written_since(ref, since_ns) else ref for ref in refs
    )


def _written_since(ref: FileRef, since_ns: int) -> bool:
    return max(ref.mtime_ns, ref.ctime_ns) > since_ns - _CLOCK_STEP_NS


def sha256(descriptor: int) -> str:
    """Return the digest of an opened file, read from its start in pieces."""
    digest, offset = hashlib.sha256(), 0
    while piece := os.pread(descriptor, _CHUNK, offset):
        digest.update(piece)
        offset += len(piece)
    return digest.hexdigest()


def engine_name(name: str, number: int) -> str:
    """Return the name of file `number` for the engine, under its partition folders.

    Characters that the engine reads as a pattern, or as the end of a name or value, are percent-encoded (`%2A` for
    `*`).
    """
    parts = PurePosixPath(name).parts[:-1]
    folders = ["=".join(map(_escape, part.split("=", 1))) for part in parts if "=" in part]
    return "/".join((*folders, f"{number}{PurePosixPath(name).suffix}"))


def _escape(text: str) -> str:
    return PATTERN.sub(lambda found: f"%{ord(found[0]):02X}", text)


def quote_text(value: str) -> str:
    """Return a string as a literal of the engine."""
    if "\x00" in value:
        raise SourceUnreadable("expected text without NUL")
    return "'" + value.replace("'", "''") + "'"


def quote_name(value: str) -> str:
    """Return a name as an identifier of the engine."""
    if "\x00" in value:
        raise SourceUnreadable("expected a name without NUL")
    return quote_identifier(value)


def alike(name: str) -> str:
    """Return a column name with case and accents folded, so that names that look alike are equal."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def quote_list(values: Sequence[str]) -> str:
    """Return a list of strings as a literal of the engine."""
    return "[" + ", ".join(quote_text(value) for value in values) + "]"


def _ref(path: str, found: os.stat_result, name: str) -> FileRef:
    return FileRef(path, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, name, found.st_ctime_ns)


def _sync_file(descriptor: int) -> None:
    """Write mapped pages to disk, so that the next write through a map changes the file times."""
    with suppress(OSError):  # some file systems cannot sync
        os.fsync(descriptor)


def _sync_file_system(top: Path) -> int | None:
    """Sync all files of a file system at once, which for thousands takes a hundredth of the time. Returns the device.

    Returns None where the system cannot. A file that is written in between is `fresh` by its times.
    """
    sync = getattr(ctypes.CDLL(None), "syncfs", None)
    descriptor = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return os.fstat(descriptor).st_dev if sync is not None and sync(descriptor) == 0 else None
    finally:
        os.close(descriptor)


def _open_file(real: Path, asked: str) -> int:
    with path_refusals(asked):  # non-blocking: opening a named pipe would wait
        return os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)


def _walk(top: Path) -> Iterator[Path]:
    """Yield the files below a directory.

    Raises: PathRefused for a folder that is a link, which may form a loop, and for a folder that the connector cannot
    read, unless it belongs to the disk itself. Its rows would be missing silently.
    """
    for directory, folders, names in os.walk(top, followlinks=False, onerror=_on_walk_error):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "_")))
        if linked := [name for name in folders if os.path.islink(os.path.join(directory, name))]:
            raise PathRefused(
                f"expected folders that are no links, came {linked[0]!r} under {directory!r}; put what it leads to in "
                "its place, or register that directory"
            )
        for name in names:
            if not name.startswith((".", "_")):
                yield Path(directory, name)


def _on_walk_error(error: OSError) -> None:
    if os.path.basename(error.filename) in _OF_DISKS:
        return
    raise path_refusal(error, error.filename) from error


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device"}
    return kinds.get(stat.S_IFMT(mode), "something else")
