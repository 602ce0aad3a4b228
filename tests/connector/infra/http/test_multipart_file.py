"""The file of a form: cut anywhere, wrong in any way, and never held as a whole."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable

import pytest

from connector.errors import Invalid
from connector.infra.http.multipart_file import FormFile

KIND = "multipart/form-data; boundary=xx"


def part(content: bytes, name: str = "file", file: str | None = "a.csv") -> bytes:
    named = b"" if file is None else f'; filename="{file}"'.encode()
    return (
        b'--xx\r\nContent-Disposition: form-data; name="'
        + name.encode()
        + b'"'
        + named
        + b"\r\n\r\n"
        + content
        + b"\r\n"
    )


async def sent(pieces: Iterable[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def read(body: bytes, *, step: int = 2**16, kind: str = KIND) -> tuple[str, bytes]:
    form = FormFile(kind, sent(body[at : at + step] for at in range(0, len(body), step)))
    return await form.read_name(), b"".join([piece async for piece in form.pieces()])


@pytest.mark.parametrize("step", [1, 2, 7, 1000])
async def test_a_file_is_read_wherever_its_body_is_cut(step: int) -> None:
    content = b"a,b\r\n--xx\r--x\n1,2\r\n-"
    body = part(b"ignored", "note", None) + part(content, file="Patients 2024.csv") + b"--xx--\r\n"
    assert await read(body, step=step) == ("Patients 2024.csv", content)


WHOLE = part(b"1") + b"--xx--\r\n"


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"", KIND),
        (b"a=b", KIND),
        (WHOLE, "application/x-www-form-urlencoded"),
        (WHOLE, "multipart/form-data"),
        (WHOLE, "multipart/form-data; boundary=yy"),
        (part(b"1", file=None) + b"--xx--\r\n", KIND),
        (part(b"1") + part(b"2") + b"--xx--\r\n", KIND),
        (WHOLE[:-6], KIND),
        (b"--xx\r\n" + b"a: b\r\n" * 1000 + WHOLE, KIND),
        (b"--xx\r\n" + b"a" * 100_000 + WHOLE, KIND),
        (part(b"1" * 200_000, "note", None) + WHOLE, KIND),
    ],
)
async def test_what_is_no_form_with_one_whole_file_is_refused(body: bytes, kind: str) -> None:
    with pytest.raises(Invalid) as refused:
        await read(body, kind=kind, step=2**12)
    assert refused.value.code == "upload_invalid"


async def test_no_more_than_a_piece_is_held() -> None:
    async def body() -> AsyncIterator[bytes]:
        yield part(b"")[:-2]
        for _ in range(1000):
            yield b"x" * 2**16
        yield b"\r\n--xx--\r\n"

    form = FormFile(KIND, body())
    await form.read_name()
    total = 0
    async for piece in form.pieces():
        total += len(piece)
        assert sum(map(len, form._ready)) <= 2**17
    assert total == 1000 * 2**16
