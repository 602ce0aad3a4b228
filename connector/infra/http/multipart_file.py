"""The file of a page's form (multipart/form-data, RFC 7578), in pieces as they arrive. Keeps no more than one piece."""

from __future__ import annotations

from collections.abc import AsyncIterator

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from connector.errors import Invalid

_HEAD_MAX = 2**16  # bytes before the file's first: its own head, and small fields
_NAME_MAX = 255


class FormFile:
    """The only file of a form. Call `read_name` first, then `pieces`.

    Both raise Invalid for a body that is not such a form, has no file, has several, or ends early.
    """

    def __init__(self, content_type: str, body: AsyncIterator[bytes]) -> None:
        media, options = parse_options_header(content_type)
        boundary = options.get(b"boundary", b"")
        if media != b"multipart/form-data" or not boundary:
            raise _not_a_form()
        self._body = body
        self._ready: list[bytes] = []
        self._field, self._value, self._heads = b"", b"", dict[bytes, bytes]()
        self._names: list[str] = []  # of files, in order
        self._inside, self._complete = False, False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._on_part_begin,
                "on_header_field": self._on_header_field,
                "on_header_value": self._on_header_value,
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers_finished,
                "on_part_data": self._on_part_data,
                "on_part_end": self._on_part_end,
                "on_end": self._on_end,
            },
        )

    async def read_name(self) -> str:
        """Return the file's name as the browser sent it, which is untrusted text."""
        read = 0
        while not self._names:
            piece = await anext(self._body, None)
            if piece is None or read > _HEAD_MAX:
                raise _not_a_form()
            read += len(piece)
            self._feed(piece)
        return self._names[0]

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield the content of the file, whole or not at all: the last step checks that the form has ended."""
        while True:
            for ready in self._take_ready():
                yield ready
            piece = await anext(self._body, None)
            if piece is None:
                break
            self._feed(piece)
        if not self._complete:
            raise _not_a_form()

    def _feed(self, piece: bytes) -> None:
        try:
            self._parser.write(piece)
        except FormParserError:
            raise _not_a_form() from None
        if len(self._names) > 1:
            raise Invalid("expected one file, got several; upload them one after the other", code="upload_invalid")

    def _take_ready(self) -> list[bytes]:
        ready, self._ready = self._ready, []
        return ready

    def _on_part_begin(self) -> None:
        self._heads, self._field, self._value, self._inside = {}, b"", b"", False

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        self._heads[self._field.lower()] = self._value
        self._field, self._value = b"", b""

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._heads.get(b"content-disposition", b""))
        if b"filename" in options:
            self._inside = True
            self._names.append(options[b"filename"].decode("utf-8", "replace")[-_NAME_MAX:])

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._inside:
            self._ready.append(data[start:end])

    def _on_part_end(self) -> None:
        self._inside = False

    def _on_end(self) -> None:
        self._complete = True


def _not_a_form() -> Invalid:
    return Invalid(
        "expected a form with one whole file, got something else or only its beginning; choose a file and upload it "
        "again",
        code="upload_invalid",
    )
