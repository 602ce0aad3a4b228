"""Receives files that an owner uploads on a page, into a folder that datasets may be registered from.

The steps of an upload; the numbers also stand next to the code:

1. The ending of the name is that of a kind of source, and a place is free. The name is untrusted: only letters, digits
   and a few signs of it are used, with random digits behind, so that no file is ever replaced.
2. The bytes go to a new hidden file, within the limits of one upload and of all.
3. A worker process opens it as the kind that its ending says, and reads its first rows.
4. Its record is committed, with the person's name and the digest; then the file gets its name.

After a failure no file is kept. Registration pins and reads the file like any other.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from connector.datasets.owned_files import OwnedFolder, remove
from connector.datasets.source_browser import SourceEntry
from connector.datasets.sources import SOURCES, kinds_of, source
from connector.datasets.sources.to_parquet import disk_full
from connector.errors import BodyTooLarge, ConnectorError, Invalid, Limited
from connector.events import FileUploaded, RequestRefused
from connector.store import Store

_AT_ONCE = 4
_WRITE_BYTES = 2**20
_STEM_MAX, _ENDING_MAX = 60, 40
_STRANGE = re.compile(r"[^A-Za-z0-9._-]+")
ARRIVING = ".arriving"
CheckReadable = Callable[[str, str], Awaitable[object]]
"""Reads the first rows of a path as a kind; raises ConnectorError where that fails."""


@dataclass(frozen=True, slots=True)
class UploadLimits:
    """Bytes of one upload (`each`) and of the whole folder (`total`; 0: uploads are off)."""

    each: int
    total: int


class Uploads:
    """The files that owners uploaded to this connector."""

    def __init__(self, store: Store, folder: Path, *, limits: UploadLimits, check: CheckReadable) -> None:
        self.folder, self.limits = folder, limits
        self._store, self._check = store, check
        self._arriving = OwnedFolder(folder / ARRIVING)
        self._sizes: dict[Path, int] = {}  # bytes of the uploads under way
        if limits.total:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            remove(self._arriving.list_left_over())

    @property
    def endings(self) -> tuple[str, ...]:
        """Return the endings of files that can be uploaded."""
        return (*dict.fromkeys(ending for kind in SOURCES for ending in source(kind).SUFFIXES), ".json")

    def close(self) -> None:
        """Release the files of this process."""
        self._arriving.close()

    async def take(self, name: str, pieces: AsyncIterator[bytes], *, by: str) -> SourceEntry:
        """Receive a whole file and return its place, after its record is committed.

        Raises: Invalid for the name, BodyTooLarge and Limited at a limit, and the reason of a file that cannot be read.
        """
        try:
            return await self._take(name, pieces, by=by)
        except ConnectorError as error:
            detail = {"request": "upload a file"}
            refused = RequestRefused(actor=by, outcome="refused", code=error.code, reason=error.message, detail=detail)
            await self._store.write(lambda tx: tx.publish(refused))
            raise

    async def _take(self, name: str, pieces: AsyncIterator[bytes], *, by: str) -> SourceEntry:
        kind, target = self._read_name(name)  # 1
        if len(self._sizes) >= _AT_ONCE:
            raise Limited(f"expected at most {_AT_ONCE} uploads at once; wait until one has ended", code="uploads_max")
        arriving = await asyncio.to_thread(self._arriving.new, f"-{target.name}")
        self._sizes[arriving] = 0
        try:
            digest = await self._write(arriving, pieces)  # 2
            await self._check_content(arriving, kind, target.name)  # 3
            size = self._sizes[arriving]
            detail = {"file": target.name, "file_kind": kind, "bytes": size, "sha256": digest}
            await self._store.write(lambda tx: tx.publish(FileUploaded(actor=by, detail=detail)))  # 4
            await asyncio.to_thread(os.rename, arriving, target)
            return SourceEntry(_base_name(name), str(target), False, size, kind)
        except OSError as error:
            raise disk_full() from error
        finally:
            del self._sizes[arriving]
            with suppress(OSError):  # the next start removes it
                await asyncio.to_thread(remove, [arriving])

    async def _check_content(self, path: Path, kind: str, shown: str) -> None:
        """Check the content; an error names the file as it is shown, not the hidden one."""
        try:
            await self._check(str(path), kind)
        except ConnectorError as error:
            if str(path) not in error.message:
                raise
            raise type(error)(error.message.replace(str(path), shown), code=error.code) from None

    def _read_name(self, name: str) -> tuple[str, Path]:
        if not self.limits.total:
            raise Invalid("this connector takes no uploads (HANSE_UPLOAD_MB is 0)", code="uploads_off")
        safe = _STRANGE.sub("_", _base_name(name)).strip(".")
        kind = next(iter(kinds_of([safe])), "")
        if not kind:
            raise Invalid(
                f"expected a file whose name ends in {', '.join(self.endings)}, got another; write CSV or Parquet",
                code="upload_invalid",
            )
        stem, _, ending = safe.partition(".")
        place = f"{stem[:_STEM_MAX] or 'file'}-{secrets.token_hex(4)}.{ending[-_ENDING_MAX:]}"
        return kind, self.folder / place

    async def _write(self, path: Path, pieces: AsyncIterator[bytes]) -> str:
        """Write the pieces to a new file, and return their SHA-256."""
        used = await asyncio.to_thread(_measure, self.folder)
        digest, held = hashlib.sha256(), bytearray()
        descriptor = await asyncio.to_thread(os.open, path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)

        def flush(block: bytes) -> None:
            digest.update(block)
            while block:
                block = block[os.write(descriptor, block) :]

        try:
            async for piece in pieces:
                self._count(path, len(piece), used)
                held += piece
                if len(held) >= _WRITE_BYTES:
                    await asyncio.to_thread(flush, bytes(held))
                    held.clear()
            await asyncio.to_thread(flush, bytes(held))
            await asyncio.to_thread(os.fsync, descriptor)
        finally:
            os.close(descriptor)
        if not self._sizes[path]:
            raise Invalid("expected a file with content, got an empty one", code="upload_invalid")
        return digest.hexdigest()

    def _count(self, path: Path, more: int, used: int) -> None:
        self._sizes[path] += more
        if self._sizes[path] > self.limits.each:
            raise BodyTooLarge(
                f"expected a file of at most {self.limits.each >> 20:,} MB, got a larger one; compress it (Parquet, or "
                "CSV with gzip), or let the operator place it on the connector's machine",
                code="upload_too_large",
            )
        if used + sum(self._sizes.values()) > self.limits.total:
            raise Limited(
                f"expected uploads of at most {self.limits.total >> 20:,} MB together; let the operator remove earlier "
                "ones",
                code="uploads_full",
            )


def _base_name(name: str) -> str:
    return name.replace("\\", "/").rpartition("/")[2]


def _measure(folder: Path) -> int:
    """Return the bytes of all files that lie in the folder."""
    with os.scandir(folder) as found:
        return sum(one.stat(follow_symlinks=False).st_size for one in found if one.is_file(follow_symlinks=False))
