"""A case of people's formats: CSV and Parquet by `Accept` or `format`, each value, and whole by the log's digest."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from typing import Any

import httpx2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from tests.support import provider, streamed
from tests.support.random_http import OverHttp
from tests.support.random_space import Different

_MEDIA = {"csv": "text/csv", "parquet": "application/vnd.apache.parquet"}
_FIELD = re.compile(r'(?:"((?:[^"]|"")*)"|([^",\n]*))([,\n])')


class Written(OverHttp):
    """Reads the rows as a file, as docs/data-plane.md has it, and compares."""

    form = ""

    def words(self) -> Iterator[str]:
        yield from super().words()
        yield f"format {self.form}"

    async def ask(self) -> str:
        self.form = self.rng.choice(("csv", "csv", "parquet"))
        if not self.asked.blocks or self.world.reserved:
            await self._file(self.expected if self.asked.most is None else self.expected.slice(0, self.asked.most))
            return "equal"
        plan = await self._planned()
        count = len(plan["blocks"])
        order = list(range(count)) if self.asked.blocks == "all" else self.rng.sample(range(count), count // 2)
        if not order:
            return "no blocks"
        blocks = "all" if self.asked.blocks == "all" else ",".join(map(str, order))
        expected = self._of_blocks(order)
        if self.asked.most is not None and self.asked.most < len(expected):
            await self._cut_off(blocks=blocks, snapshot=plan["snapshot"])
        else:
            await self._file(expected, blocks=blocks, snapshot=plan["snapshot"])
        return "equal"

    async def _file(self, expected: pa.Table, **given: str) -> None:
        for _ in range(1 + self.asked.twice):
            answer = await self._written(given)
            if answer.status_code != 200:
                raise Different(f"refused: {answer.text}")
            await self._check_record(answer, len(expected))
            if wrong := _COMPARED[self.form](answer.content, expected):
                raise Different(f"{self.form}: {wrong}")

    async def _cut_off(self, **given: str) -> None:
        """More than was asked for at most: no file, or a part of one that says so."""
        try:
            answer = await self._written(given)
        except httpx2.RemoteProtocolError:
            return
        self._expect_refused(answer, "rows_limit")

    async def _written(self, given: dict[str, str]) -> httpx2.Response:
        parameters, headers = self.asked.parameters | given, self._headers
        parameters.pop("codec", "")
        if self.rng.random() < 0.5:
            headers["accept"] = _MEDIA[self.form]
        else:
            parameters["format"] = self.form
        return await self.over.door.client.get("/data/v1", params=parameters, headers=headers)

    async def _check_record(self, answer: httpx2.Response, rows: int) -> None:
        running, read = self.over.running, answer.headers["hanse-read"]
        await provider.settled(running)
        (told,) = [one.detail for one in running.events if one.kind == "ReadEnded" and one.process == read]
        digest = f"xxh3:{xxhash.xxh3_128_hexdigest(answer.content)}"
        if told["rows"] != rows or (self.asked.digest != "sha256" and told["digest"] != digest):
            raise Different(f"{rows} rows of digest {digest} are recorded as {told}")


def unlike_file(form: str, body: bytes, expected: pa.Table, *, whole: bool) -> str:
    """What of a file is not as it must be. One that is not `whole` has the first rows, and does not look like it."""
    if whole:
        return _COMPARED[form](body, expected)
    if form == "parquet":
        return "a part of a file has a footer" if _opens(body) else ""
    rows = whole_rows(form, body)
    return _unlike_csv(_whole_lines(body), expected.slice(0, rows)) if body else ""


def untrue_file(body: bytes, end: Mapping[str, Any]) -> str:
    """What of the trailers is not what came."""
    hashes = {"xxh3": xxhash.xxh3_128_hexdigest, "sha256": lambda one: hashlib.sha256(one).hexdigest()}
    name, _, digest = str(end["digest"]).partition(":")
    return "" if hashes[name](body) == digest and end["bytes"] == len(body) else f"{len(body)} bytes for {end}"


def whole_rows(form: str, body: bytes) -> int:
    """Rows of a CSV file that have come whole."""
    return max(0, sum(1 for _ in _lines(_whole_lines(body).decode())) - 1) if form == "csv" else 0


def _whole_lines(body: bytes) -> bytes:
    """Without the last line if it is not whole."""
    text, at, end = body.decode(errors="ignore"), 0, 0
    while (found := _FIELD.match(text, at)) is not None:
        at = found.end()
        end = at if found[3] == "\n" else end
    return text[:end].encode()


def _opens(body: bytes) -> bool:
    try:
        pq.ParquetFile(io.BytesIO(body))
    except (pa.ArrowException, OSError):
        return False
    return True


def _unlike_parquet(body: bytes, expected: pa.Table) -> str:
    stored = [one.with_type(pa.timestamp("ms")) if one.type == pa.timestamp("s") else one for one in expected.schema]
    return streamed.unlike(pq.ParquetFile(io.BytesIO(body)).read(), expected.cast(pa.schema(stored)))


def _unlike_csv(body: bytes, expected: pa.Table) -> str:
    names, *rows = _lines(body.decode())
    if [text for text, _ in names] != expected.column_names:
        return f"names {names} for {expected.column_names}"
    if len(rows) != len(expected):
        return f"{len(rows)} rows for {len(expected)}"
    missing = ("", len(names) == 1)  # in quotes where readers would pass over the line
    for number, column in enumerate(expected.columns):
        for row, (told, value) in enumerate(zip(rows, _values(column), strict=True)):
            field = told[number]
            if field != missing if value is None else not _says(*field, value, column.type):
                return f"{column.type} in row {row}: {field} for {value!r}"
    return ""


def _lines(text: str) -> Iterator[list[tuple[str, bool]]]:
    """The fields of each line, and whether they stood in quotes."""
    line, at = [], 0
    while at < len(text):
        found = _FIELD.match(text, at)
        if found is None:
            raise Different(f"no CSV: {text[at : at + 80]!r}")
        quoted, plain, end = found.groups()
        line.append((plain, False) if quoted is None else (quoted.replace('""', '"'), True))
        at = found.end()
        if end == "\n":
            yield line
            line = []


def _values(column: pa.ChunkedArray) -> list[Any]:
    """Moments and what is nested as Arrow has them: Python knows no nanoseconds and few years."""
    kind = column.type
    plain = not (pa.types.is_nested(kind) or pa.types.is_temporal(kind))
    return column.to_pylist() if plain else [one if one.is_valid else None for one in column]


def _says(text: str, quoted: bool, value: Any, kind: pa.DataType) -> bool:
    """Whether a field says this value, which is there."""
    return bool(text or quoted) and next(says for test, says in _SAID if test(kind))(text, value, kind)


def _nested(text: str, value: pa.Scalar, kind: pa.DataType) -> bool:
    def constant(name: str) -> Any:
        raise Different(f"{name} is no JSON")

    return _is(json.loads(text, parse_constant=constant), value)


def _is(told: Any, value: pa.Scalar) -> bool:
    """Whether what JSON tells is this value."""
    kind = value.type
    if not value.is_valid:
        return told is None
    if pa.types.is_struct(kind):
        return list(told) == [one.name for one in kind] and all(_is(told[one.name], value[one.name]) for one in kind)
    if pa.types.is_map(kind):  # pairs
        keys, items = (value.values.field(number) for number in (0, 1))
        return len(told) == len(value) and all(
            len(pair) == 2 and _is(pair[0], key) and _is(pair[1], item)
            for pair, key, item in zip(told, keys, items, strict=True)
        )
    if pa.types.is_nested(kind):
        return len(told) == len(value) and all(map(_is, told, value.values))
    if pa.types.is_floating(kind) and not math.isfinite(value.as_py()):
        return {"NaN": "nan", "Infinity": "inf", "-Infinity": "-inf"}[told] == str(value.as_py())
    if isinstance(told, str):
        return _says(told, True, value if pa.types.is_temporal(kind) else value.as_py(), kind)
    return bool(repr(told) == repr(value.as_py()))


def _float(text: str, value: Any, kind: pa.DataType) -> bool:
    width = np.float32 if kind == pa.float32() else np.float64
    return (math.isnan(value) and text == "nan") or width(text).tobytes() == width(value).tobytes()


def _moment(text: str, value: Any, kind: pa.DataType) -> bool:
    """`text` in ISO 8601, of a column that has a zone in UTC."""
    unit, clock = ("D", "") if pa.types.is_date(kind) else (kind.unit, "1970-01-01T" * pa.types.is_time(kind))
    zoned = pa.types.is_timestamp(kind) and kind.tz is not None
    at = np.datetime64(clock + text.removesuffix("Z"), unit)
    return text.endswith("Z") == zoned and int(at.astype(np.int64)) == value.value


_SAID: list[tuple[Callable[[pa.DataType], bool], Callable[[str, Any, pa.DataType], bool]]] = [
    (pa.types.is_boolean, lambda text, value, _: text == str(value).lower()),
    (pa.types.is_integer, lambda text, value, _: int(text) == value),
    (pa.types.is_floating, _float),
    (pa.types.is_decimal, lambda text, value, _: Decimal(text) == value),
    (pa.types.is_temporal, _moment),
    (pa.types.is_nested, _nested),
    (lambda kind: pa.types.is_binary(kind) or pa.types.is_fixed_size_binary(kind) or pa.types.is_large_binary(kind),
     lambda text, value, _: base64.b64decode(text, validate=True) == value),
    (lambda kind: True, lambda text, value, _: text == value),
]  # fmt: skip
_COMPARED = {"csv": _unlike_csv, "parquet": _unlike_parquet}
