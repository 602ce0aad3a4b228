"""Which files a source may consist of, and whether they are still the ones that were registered.

A file is pinned by device, inode, size and both times of change when it is registered; it is opened first and compared
then, so that what was checked is what is read. The time of change of the inode cannot be set back by whoever writes.
Knows nothing of formats and imports only the standard library:
the worker process loads it too.
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
from connector.errors import Busy, HanseError, PathRefused, SourceUnreadable, VersionChanged
from policies.contracts.columns import quote_identifier

FILES_MAX = 12_000  # each is an open descriptor of a worker, which may have 16,384
_CHUNK = 2**20
_GONE = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.ESTALE))  # or something else lies there
PATTERN = re.compile(r"[*?\[\]{}=\\\r\n]")  # of the engine, and what ends a name or value to it
_OF_DISKS = frozenset(("lost+found", "System Volume Information", "$RECYCLE.BIN"))  # a disk's own, and nobody's data
_CLOCK_STEP_NS = 20_000_000  # file times move on by a tick of the kernel's clock, at most 10 ms
LOOK_SECONDS = 0.03  # longer than that


@dataclass(frozen=True, slots=True)
class FileRef:
    """One registered file. `name` is its place under the dataset's directory (`year=2024/part-0.parquet`).

    An object in a store has a path with a scheme, and an ETag (and version, where its bucket keeps them) instead of
    device, inode and time of change. `ours`: we have made it, and remove it when it is wanted no more.
    """

    path: str
    dev: int
    inode: int
    size: int
    mtime_ns: int
    name: str = ""
    ctime_ns: int = 0  # 0: registered before it was kept
    etag: str = ""
    version: str = ""
    ours: bool = False

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> FileRef:
        return cls(**value)


def file_ref(path: str, *, roots: Sequence[Path], name: str = "") -> FileRef:
    """Pin one file, or PathRefused. Steps (evidence-and-hardening, section 3.2):
    1. a path of printable length without NUL; 2. it exists, links resolved; 3. it lies under a root that the
    operator configured; 4. it is a regular file, asked of the opened file and not of the name.
    """
    return _pinned(resolve(path, roots=roots), path, name)  # 1-3


def own_ref(path: str, *, folder: Path) -> FileRef:
    """Pin a file that a worker of ours has just written into a private folder of ours, where nobody else writes.

    Without waiting for the disk: there is no mapping of somebody else's whose writes would have to show.
    """
    real = resolve(path, roots=[folder])
    return _ref(str(real), _regular(real, path, settle=False), real.name)


def _pinned(real: Path, asked: str, name: str, *, settled: int | None = None) -> FileRef:
    """Pin the file at a path without links, and under a root. `settled`: the device that was synced just now."""
    try:
        str(real).encode()
    except UnicodeEncodeError:
        raise PathRefused(
            f"expected files and folders whose names are UTF-8, came {str(real)!r}, as of another encoding; rename it"
        ) from None
    return _ref(str(real), _regular(real, asked, settled=settled), name or real.name)


def _regular(real: Path, asked: str, *, settle: bool = True, settled: int | None = None) -> os.stat_result:
    """What the opened file is, once what was mapped and written of it shows; PathRefused where it is no file."""
    descriptor = _open(real, asked)
    try:
        found = os.fstat(descriptor)
        if settle and found.st_dev != settled:
            _settle(descriptor)
            found = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    if not stat.S_ISREG(found.st_mode):  # 4
        raise PathRefused(f"expected a regular file, came {_kind(found.st_mode)}: {asked!r}; name a data file")
    return found


def resolve(path: str, *, roots: Sequence[Path]) -> Path:
    """The real path behind `path`, which must exist and lie under one of `roots`."""
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


def none_of(places: Sequence[Path], files: tuple[FileRef, ...]) -> tuple[FileRef, ...]:
    """The files. PathRefused for one that is, or lies under, one of these places of the connector's own: whoever may
    register data would have its keys. By device and inode, too: a place may be mounted twice, and a file of it have
    another name, or be a link to where it is kept."""
    own = {_identity(inner) for place in places for inner in (place, *_inside(place))} - {None}
    known: dict[Path, bool] = {}
    path = within(places, (file.path for file in files)) or next(
        (file.path for file in files if (file.dev, file.inode) in own or _lies_in(own, Path(file.path).parent, known)),
        "",
    )
    if path:
        raise PathRefused(
            f"expected files of data, came one of the connector's own: {path!r}; name a directory without such, or let "
            "the operator keep HANSE_DATA_DIR, HANSE_CONVERTED_DIR and secrets outside of HANSE_SOURCE_ROOTS"
        )
    return files


def within(places: Sequence[Path], paths: Iterable[str]) -> str:
    """The first of these paths that is one of these places, or lies under it; empty for none. No disk of `paths` is
    asked."""
    real = [os.path.realpath(place) for place in places]
    below = tuple(f"{place}/" for place in real)
    return next((path for path in paths if path in real or path.startswith(below)), "")


def _identity(path: Path) -> tuple[int, int] | None:
    """What a path leads to, whatever it is called; None where nobody can tell."""
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_dev, found.st_ino) if found.st_ino else None


def _inside(place: Path) -> list[Path]:
    """Keys are few, and may be links to where they are kept. What else a place has is known by its folder."""
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
    """Every data file below a directory, in the order of names; hidden ones and such as `_SUCCESS` are left out."""
    top = resolve(path, roots=roots)
    if not top.is_dir():
        raise PathRefused(f"expected a directory, came a file: {path!r}")
    settled = _settle_all(top)
    found: list[FileRef] = []
    for file in sorted(_walk(top)):
        if file.name.lower().endswith(tuple(suffixes)):
            # Below a directory without links only the file itself can be one.
            real = resolve(str(file), roots=roots) if file.is_symlink() else file
            found.append(_pinned(real, str(file), str(file.relative_to(top)), settled=settled))
        if len(found) > FILES_MAX:
            raise PathRefused(f"expected at most {FILES_MAX} files under {path!r}; merge small files first")
    if not found:
        raise PathRefused(f"no {' or '.join(suffixes)} file under {path!r}; {_instead(top, suffixes)}")
    return tuple(found)


def others_under(path: str, *, suffixes: Sequence[str]) -> list[str]:
    """The files below a directory that are none of a source's, as by their endings; none where `path` is a file."""
    top = Path(os.path.realpath(path))
    names = (os.fsencode(file.relative_to(top)).decode(errors="replace") for file in _walk(top)) if top.is_dir() else ()
    return sorted(name for name in names if not name.lower().endswith(tuple(suffixes)))


def _instead(top: Path, suffixes: Sequence[str]) -> str:
    """What to do where a directory has no file of a kind, which has these endings: name the kind of those that it has,
    or give them one."""
    from connector.datasets.sources import kinds_of, source  # which know all kinds, and import this

    names = [file.name for file in _walk(top)]
    if not names:
        return "it has no files at all, or hidden ones only; name a directory with data"
    kinds = kinds_of(names)
    if kinds and all(suffixes == source(kind).SUFFIXES for kind in kinds):
        return "give its files one of these endings"  # a file alone is of this kind with others, too
    return f"name the kind that its files are of{f', as by --kind {kinds[0]}' if kinds else ''}"


def open_pinned(ref: FileRef) -> int:
    """A descriptor of exactly the registered file; VersionChanged when another or a changed one lies there, or none.

    SourceUnreadable where we may not read it, Busy where the system cannot open it now.
    """
    try:
        descriptor = os.open(ref.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _why(error, ours=ref.ours) from error
    try:
        check_unchanged(descriptor, ref)
    except HanseError:
        os.close(descriptor)
        raise
    return descriptor


def check_unchanged(descriptor: int, ref: FileRef) -> None:
    """VersionChanged unless the opened file is still byte for byte of the time when it was registered."""
    try:
        status = os.fstat(descriptor)
    except OSError as error:
        raise _why(error) from error
    found = _ref(ref.path, status, ref.name)
    if ref.ours:  # we may have removed it under a read that goes on, which is a change of the inode, too
        found = replace(found, ours=True, ctime_ns=found.ctime_ns if status.st_nlink else ref.ctime_ns)
    if found != ref and replace(found, ctime_ns=0) != ref:
        raise VersionChanged.of("a file of this version has changed since it was registered")


def _why(error: OSError, *, ours: bool = False) -> HanseError:
    """Why a registered file cannot be opened or looked at: nobody shall look for a change where there is none."""
    if ours and error.errno in (errno.ENOENT, errno.EACCES, errno.EPERM):  # another process may well have it
        return Busy(
            "what this dataset was converted to is not at this process of the owner's connector; try again, or let the "
            "owner give all its processes one HANSE_CONVERTED_DIR",
            code="file_unavailable",
        )
    if error.errno in _GONE:
        return VersionChanged.of("a file of this version is gone")
    if isinstance(error, PermissionError):
        return SourceUnreadable("a file of this version may not be read by the connector; check its permissions")
    return Busy(f"a file of this version cannot be opened now ({error.strerror}); try again", code="file_unavailable")


def unchanged(files: Sequence[Mapping[str, Any]]) -> bool:
    """Whether each file (of `FileRef.to_json`) is there as it was registered; of objects in a store nobody knows."""
    try:
        for file in files:
            os.close(open_pinned(FileRef(**{key: file[key] for key in FileRef.__slots__ if key in file})))
    except (HanseError, OSError, TypeError):
        return False
    return True


def fresh(refs: Sequence[FileRef], *, since_ns: int, before: Sequence[FileRef] = ()) -> bool:
    """Whether one was written since (or a moment before) we began to look, at `since_ns`, by its own times.

    A further write within the step of the clock would not show in them. It would in those of a file that has had the
    same for longer than a step: `before` holds the files as they were looked at that long ago. So a time that lies
    ahead, of another clock or set by somebody, is none of a file that somebody is writing.
    """
    known = frozenset(before)
    return any(_written_since(ref, since_ns) and ref not in known for ref in refs)


def looked_at_again(refs: Sequence[FileRef], *, roots: Sequence[Path], since_ns: int) -> tuple[FileRef, ...]:
    """The same files, those pinned anew that were fresh. To be waited for `LOOK_SECONDS` after the look before."""
    return tuple(
        file_ref(ref.path, roots=roots, name=ref.name) if _written_since(ref, since_ns) else ref for ref in refs
    )


def _written_since(ref: FileRef, since_ns: int) -> bool:
    return max(ref.mtime_ns, ref.ctime_ns) > since_ns - _CLOCK_STEP_NS


def sha256(descriptor: int) -> str:
    """The digest of an opened file, read from its start in pieces."""
    digest, offset = hashlib.sha256(), 0
    while piece := os.pread(descriptor, _CHUNK, offset):
        digest.update(piece)
        offset += len(piece)
    return digest.hexdigest()


def engine_name(name: str, number: int) -> str:
    """Where the engine sees file `number`: under its partition folders, which keep their names.

    What the engine would take for a pattern, or for the end of a name or value, is written as it reads it back from a
    folder's name (`%2A` for `*`).
    """
    parts = PurePosixPath(name).parts[:-1]
    folders = ["=".join(map(_escaped, part.split("=", 1))) for part in parts if "=" in part]
    return "/".join((*folders, f"{number}{PurePosixPath(name).suffix}"))


def _escaped(text: str) -> str:
    return PATTERN.sub(lambda found: f"%{ord(found[0]):02X}", text)


def quote_text(value: str) -> str:
    """A string as a literal of the engine."""
    if "\x00" in value:
        raise SourceUnreadable("expected text without NUL")
    return "'" + value.replace("'", "''") + "'"


def quote_name(value: str) -> str:
    """A name as an identifier of the engine."""
    if "\x00" in value:
        raise SourceUnreadable("expected a name without NUL")
    return quote_identifier(value)


def alike(name: str) -> str:
    """A column's name as people see it: in any case, and its accents within its letters or behind them."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def quote_list(values: Sequence[str]) -> str:
    """A list of strings as a literal of the engine."""
    return "[" + ", ".join(quote_text(value) for value in values) + "]"


def _ref(path: str, found: os.stat_result, name: str) -> FileRef:
    return FileRef(path, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, name, found.st_ctime_ns)


def _settle(descriptor: int) -> None:
    """Pages that somebody has mapped and written go to disk now, so that the next write to them shows in the times."""
    with suppress(OSError):  # a file system that cannot
        os.fsync(descriptor)


def _settle_all(top: Path) -> int | None:
    """The same for all files of a file system at once, which for thousands takes a hundredth of the time.

    The device; None where the system cannot. Who writes to a file in between shows in its times: it is `fresh`.
    """
    sync = getattr(ctypes.CDLL(None), "syncfs", None)
    descriptor = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return os.fstat(descriptor).st_dev if sync is not None and sync(descriptor) == 0 else None
    finally:
        os.close(descriptor)


def _open(real: Path, asked: str) -> int:
    with path_refusals(asked):  # non-blocking, so that a named pipe does not hold us
        return os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)


def _walk(top: Path) -> Iterator[Path]:
    """The files below a directory. PathRefused for a folder that is a link, which may lead round and round, and for one
    that we may not look into, unless it is a disk's own: rows that others would find there must not be missing without
    a word."""
    for directory, folders, names in os.walk(top, followlinks=False, onerror=_unseen):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "_")))
        if linked := [name for name in folders if os.path.islink(os.path.join(directory, name))]:
            raise PathRefused(
                f"expected folders that are no links, came {linked[0]!r} under {directory!r}; put what it leads to in "
                "its place, or register that directory"
            )
        for name in names:
            if not name.startswith((".", "_")):
                yield Path(directory, name)


def _unseen(error: OSError) -> None:
    if os.path.basename(error.filename) in _OF_DISKS:
        return
    raise path_refusal(error, error.filename) from error


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device"}
    return kinds.get(stat.S_IFMT(mode), "something else")
