"""Messages on their way into frames of HTTP/2: parts of files and of memory, which stay where they lie till they go."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from connector.dataplane.http.file_sender import Part, shorter, size_of

_LUMP = 2**19  # bytes of a message whose going is told: less of it now and then is silence
_LAST = 2**14  # bytes at the end of a message that are in memory before they go


@dataclass(slots=True)
class Message:
    """What goes out as one piece of data: parts of files and of memory. `seen` is shown the files' bytes as they go."""

    parts: Sequence[Part]
    seen: Callable[[memoryview], object] | None = None


class Data:
    """One message on its way into frames."""

    def __init__(self, message: Message) -> None:
        self._parts: deque[Part] = deque(part for part in message.parts if size_of(part))
        self._ready: deque[Part] = deque()  # those before them, which may go
        self._prepared = 0  # bytes of these
        self.left = self._told = sum(map(size_of, self._parts))
        self._seen = message.seen

    @property
    def next(self) -> int:
        """Bytes that may go at once: the last ones by themselves."""
        return self.left - _LAST if self.left > _LAST else self.left

    def moves(self) -> bool:
        """Whether all of it has been taken, or a lump since this was so last."""
        if self.left and self._told - self.left < _LUMP:
            return False
        self._told = self.left
        return True

    def prepare(self, size: int) -> None:
        """Read those of the next bytes that are in memory before they go: the last ones, and what somebody has to see,
        which is shown. EOFError where a file is shorter."""
        while self._prepared < size:
            for part in _taken(self._parts, size - self._prepared):
                self._ready.append(self._shown(part))
                self._prepared += size_of(part)
        if size == self.left:
            self._ready = deque(map(_copied, self._ready))

    def _shown(self, part: Part) -> Part:
        if self._seen is None or not isinstance(part, tuple):
            return part
        self._seen(found := memoryview(_copied(part)))
        return found

    def framed(self, size: int, frame: int, number: int) -> Iterator[Part]:
        """The next bytes, which are prepared, in frames of a stream (RFC 9113, sections 4.1 and 6.1), each of `frame`
        bytes at most."""
        self.left -= size
        self._prepared -= size
        while size:
            part = min(size, frame)
            yield part.to_bytes(3, "big") + b"\0\0" + number.to_bytes(4, "big")
            yield from _taken(self._ready, part)
            size -= part


def _taken(parts: deque[Part], size: int) -> list[Part]:
    """The next bytes of parts, where they lie."""
    found: list[Part] = []
    while size:
        part = parts.popleft()
        if size_of(part) > size:
            part, rest = _split(part, size)
            parts.appendleft(rest)
        size -= size_of(part)
        found.append(part)
    return found


def _split(part: Part, size: int) -> tuple[Part, Part]:
    if isinstance(part, tuple):
        number, at, whole = part
        return (number, at, size), (number, at + size, whole - size)
    view = memoryview(part)
    return view[:size], view[size:]


def _copied(part: Part) -> bytes | memoryview:
    """The bytes of a part, of a file in memory of their own. EOFError where it is shorter."""
    if not isinstance(part, tuple):
        return part
    number, at, size = part
    found = bytearray()
    while len(found) < size:
        if not (more := os.pread(number, size - len(found), at + len(found))):
            raise shorter()
        found += more
    return memoryview(found)
