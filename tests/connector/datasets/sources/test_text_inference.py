"""What text becomes when it is converted: the same values, or text as it was, and the owner is told why."""

from __future__ import annotations

import csv
import datetime
import gzip
import io
import json
import math
import random
import uuid
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from connector.datasets.sources import csv as csv_source
from connector.datasets.sources import guess_kind, read_options, source
from connector.engine.pool.protocol import Job
from connector.engine.worker.read import duckdb_engine
from connector.engine.worker.write.file_formats import FileFormatWriter
from connector.errors import Invalid, SourceUnreadable, Unavailable


def converted(
    folder: Path, kind: str, *written: str | bytes, ending: str = "", **options: Any
) -> tuple[pa.Table, Mapping[str, Any]]:
    """The table that files of this text become, and the report."""
    paths = [folder / f"{number}.{ending or kind}" for number in range(len(written))]
    for path, text in zip(paths, written, strict=True):
        path.write_bytes(text.encode() if isinstance(text, str) else text)
    target = str(folder / "out.parquet")
    with duckdb_engine.connect() as con:
        report = source(kind).convert(con, [str(path) for path in paths], read_options(kind, options), target)
    return pq.read_table(target), report


DAY, MOMENT = datetime.date(2020, 1, 13), datetime.datetime(2020, 1, 13, 22, 0)
IN_UTC = MOMENT.replace(tzinfo=datetime.UTC)
TYPED: dict[str, tuple[Sequence[str], pa.DataType, Sequence[Any]]] = {
    "whole": (["1", "-2", ""], pa.int64(), [1, -2, None]),
    "fractions": (["0.1", "1.", ".5", "2"], pa.float64(), [0.1, 1.0, 0.5, 2.0]),
    "all digits of a double": (["0.30000000000000004", "0.10000000000000001"], pa.float64(), [0.1 + 0.2, 0.1]),
    "more, of which none is lost": ([f"{0.1:.40f}"], pa.float64(), [0.1]),
    "zeros at the end": (["0.1000000000000000000000"], pa.float64(), [0.1]),
    "as programs write them": (["1e-05", "1.5E20", "-2e+20"], pa.float64(), [1e-05, 1.5e20, -2e20]),
    "infinite": (["1.5", "Infinity", "-inf"], pa.float64(), [1.5, math.inf, -math.inf]),
    "truths": (["True", "FALSE", ""], pa.bool_(), [True, False, None]),
    "truths of one letter": (["t", "f"], pa.bool_(), [True, False]),
    "days": (["2020-01-13"], pa.date32(), [DAY]),
    "days of a country": (["13.01.2020", "13.01.2020"], pa.date32(), [DAY, DAY]),
    "moments": (["2020-01-13 22:00:00.000", ""], pa.timestamp("us"), [MOMENT, None]),
    "moments of a country": (["01/13/2020 10:00:00 PM"], pa.timestamp("us"), [MOMENT]),
    "moments in zones": (["2020-01-13T22:00:00Z", "2020-01-14 00:00:00+02"], pa.timestamp("us", "UTC"), [IN_UTC] * 2),
    "moments in UTC": (["2020-01-13 22:00:00 UTC"], pa.timestamp("us", "UTC"), [IN_UTC]),
    "times": (["10:00", "10:00:00.5"], pa.time64("us"), [datetime.time(10), datetime.time(10, 0, 0, 500_000)]),
    "digits beside fractions": (
        ["9007199254740993", "0.5"],
        pa.decimal128(38, 1),
        [Decimal(9007199254740993), Decimal("0.5")],
    ),
    "more digits than a double has": (
        ["3.14159265358979323846"],
        pa.decimal128(38, 20),
        [Decimal("3.14159265358979323846")],
    ),
}


@pytest.mark.parametrize("name", list(TYPED))
def test_values_of_csv_that_mean_the_same_have_their_type(tmp_path: Path, name: str) -> None:
    texts, kind, values = TYPED[name]
    table, _ = converted(tmp_path, "csv", "a,b\n" + "".join(f"{text},x\n" for text in texts))
    assert (table["a"].type, table["a"].to_pylist()) == (kind, values)


KEPT = {
    "hexadecimal": ["0x1F", "0x0a"],
    "codes": ["1E5", "12E3"],
    "names": ["Nan", "Inf"],
    "too large for a double": ["1.0E400", "1.5"],
    "too small for a double": ["1.0E-400", "1.5"],
    "digits of all sizes": [f"0.{'1' * 39}", "1e-05"],
    "a truth or a letter": ["F", "F"],
    "a truth or a country": ["NO", "NO"],
    "an epoch": ["2020-01-01", "epoch"],
    "no end": ["2020-01-01", "infinity"],
    "a day of any month": ["01/02/2020", "03/04/2020"],
    "a year of any century": ["01/02/20", "13/01/20"],
    "a far year": ["99999-01-01", "2020-01-01"],
    "nanoseconds of a day": ["10:00:00.123456789", "10:00"],
    "nanoseconds": ["2020-01-01 10:00:00.123456789", "2020-01-01 10:00:00"],
    "the end of a day": ["2020-01-01 24:00:00", "2020-01-01 10:00:00"],
    "a time that no reader takes": ["24:00", "09:00"],
    "some in a zone": ["2020-01-01 10:00:00", "2020-01-01 10:00:00+02"],
}


@pytest.mark.parametrize("name", list(KEPT))
def test_values_of_csv_that_would_mean_something_else_stay_text(tmp_path: Path, name: str) -> None:
    table, report = converted(tmp_path, "csv", "a,b\n" + "".join(f"{text},1\n" for text in KEPT[name]))
    assert table["a"].to_pylist() == KEPT[name]
    (a, b) = report["columns"]
    assert (a["type"], a["note"][:9], "note" in b) == ("VARCHAR", "text, as ", False)


MOSTLY: dict[str, tuple[Sequence[str], str]] = {
    "a word": (["1", "2", "n/a"], "text, as 'n/a' is no plain number; where that stands for a missing value, give "
               "null_text=n/a"),
    "words": (["1", "2", "3", "n/a", "none"], "text, as 'n/a' is no plain number"),
    "a long word": (["1", "2", "n" * 50], f"text, as '{'n' * 40}...' is no plain number"),
    "a word that comes late": ([*"12" * 5_000, "n/a"], "text, as a value that is not among the first 10,000 is no "
                               "plain number"),
    "postcodes": (["01067", "10115"], "text, as a number does not keep the zero that '01067' begins with"),
    "plus signs": (["5", "n/a", "+5"], "text, as '+5' has a plus sign"),
    "decimal commas": (["1,5", "2,75"], "text; where '1,5' is a number, give decimal=,"),
    "with thousands": (["1.234,5", "2,75"], "text; where '1.234,5' is a number, give decimal=, and thousands=."),
    "either": (["1,234", "2,345"], "text; where '1,234' is a number, give decimal=, or thousands=,"),
    "two ways": (["13.01.2020", "14.01.2020", "2020-01-13"], "text, as its days are written in several ways, such as "
                 "'13.01.2020' and '2020-01-13'"),
    "either way round": (["01/13/2020", "13/01/2020"], "text, as not all of its days are read in one way, such as "
                         "'01/13/2020'; give date_format or timestamp_format"),
    "a day that is missing": (["2020-01-13", "2020-01-14", "never"], "text, as 'never' is no plain day; where that "
                              "stands for a missing value, give null_text=never"),
    "words alone": (["a", "b", "7"], ""),
    "addresses": (["192.168.1.1", "192.168.1.2"], ""),
}  # fmt: skip


@pytest.mark.parametrize("name", list(MOSTLY))
def test_an_owner_is_told_why_what_looks_like_numbers_or_days_is_text(tmp_path: Path, name: str) -> None:
    values, note = MOSTLY[name]
    table, report = converted(tmp_path, "csv", "a,b\n" + "".join(f'"{value}",x\n' for value in values))
    assert table["a"].to_pylist() == list(values)
    assert [column.get("note", "") for column in report["columns"]] == [note, ""]


def test_an_owner_is_told_of_empty_texts_among_numbers(tmp_path: Path) -> None:
    _, report = converted(tmp_path, "csv", "a,b\n1,x\n2,x\n,x\nn/a,x\n", null_text="n/a")
    assert report["columns"][0].get("note") == "text, as some of it is an empty text"


def test_whole_numbers_of_csv_of_hundreds_of_digits_are_text(tmp_path: Path) -> None:
    assert converted(tmp_path, "csv", f"a\n1{'0' * 400}\n2\n")[0]["a"].to_pylist() == [f"1{'0' * 400}", "2"]


def test_an_owner_is_told_how_days_of_csv_were_read(tmp_path: Path) -> None:
    _, report = converted(tmp_path, "csv", "a,b\n13/01/2020,01/13/2020 10:00:00 PM\n01/02/2020,\n")
    assert [column["note"] for column in report["columns"]] == ["read with the day first", "read with the month first"]


def test_a_format_that_the_owner_gives_says_which_day_is_meant(tmp_path: Path) -> None:
    table, _ = converted(tmp_path, "csv", "a\n01/02/2020\n03/04/2020\n", date_format="%m/%d/%Y")
    assert table["a"].to_pylist() == [datetime.date(2020, 1, 2), datetime.date(2020, 3, 4)]
    table, _ = converted(tmp_path, "csv", "a\n01/02/2020\nepoch\n", date_format="%m/%d/%Y")
    assert table["a"].to_pylist() == ["01/02/2020", "epoch"]


SECONDS = "%Y-%m-%d %H:%M:%S"
FORMATTED: dict[str, tuple[str, str, Sequence[Any]]] = {  # a format, a text beside such of it, what they become
    "with another": ("%d.%m.%Y %H:%M", "13.01.2020 22:00,2020-01-13 22:00:00", [MOMENT, MOMENT]),
    "with one in a zone": ("%d.%m.%Y %H:%M", "13.01.2020 22:00,2020-01-13T22:00:00Z", [MOMENT, IN_UTC]),
    "with nanoseconds": ("%d.%m.%Y %H:%M", f"13.01.2020 22:00,{MOMENT}.123456789", [MOMENT, f"{MOMENT}.123456789"]),
    "with zones": (f"{SECONDS} %z", f"2020-01-14 03:30:00 +0530,{MOMENT}", [IN_UTC, MOMENT]),
    "of nanoseconds": (f"{SECONDS}.%n", f"{MOMENT}.000000001,x", [f"{MOMENT}.000000001", "x"]),
    "of microseconds": (f"{SECONDS}.%n", f"{MOMENT}.000000000,x", [MOMENT, "x"]),
    "of a year of any century": ("%d.%m.%Y %H:%M", "13.01.20 22:00,x", ["13.01.20 22:00", "x"]),
}


@pytest.mark.parametrize("name", list(FORMATTED))
def test_a_format_of_moments_of_csv_alters_none(tmp_path: Path, name: str) -> None:
    form, line, values = FORMATTED[name]
    table, _ = converted(tmp_path, "csv", f"a,b\n{line}\n,\n", timestamp_format=form)
    assert list(table.to_pylist()[0].values()) == values


@pytest.mark.parametrize(
    "options",
    [{"timestamp_format": "%d.%m.%Y %Z"}, {"timestamp_format": "%d.%m. %H:%M"}, {"date_format": "%d.%m.%Y %H:%M"}],
)
def test_a_format_of_csv_that_would_lose_a_part_is_refused(tmp_path: Path, options: dict[str, str]) -> None:
    with pytest.raises(Invalid, match="with a year and without") as raised:
        converted(tmp_path, "csv", "a\n1\n", **options)
    assert raised.value.code == "option_invalid"


LATE = '1,"x"\n' * 3000
READ: dict[str, tuple[str, dict[str, Any], Sequence[Any]]] = {  # a file, its options, the values of its last line
    "a sign of comments": ("a,b\n1,#x\n2,y#z\n", {}, [2, "y#z"]),
    "a comment at its top": ("# by us\na,b\n1,#x\n2,y#z\n", {"skip_lines": 1}, [2, "y#z"]),
    "a line of its delimiter": ("sep=;\na;b\n1;x\n", {"skip_lines": 1}, [1, "x"]),
    "single quotes": ("a,b\n1,'x'\n2,'y'\n", {}, [2, "'y'"]),
    "single quotes that its owner tells": ("a,b\n1,'x,y'\n2,'it''s'\n", {"quote": "'"}, [2, "it's"]),
    "an escape that its owner tells": ('a,b\n1,"x"\n2,"say \\"hi\\""\n', {"escape": "\\"}, [2, 'say "hi"']),
    "backslashes": ('a,b\n1,"say ""hi"""\n2,"C:\\new"\n', {}, [2, "C:\\new"]),
    "no quotes": ('a,b\n1,"x" y\n2,"z\n', {"quote": "none"}, [2, '"z']),
}


@pytest.mark.parametrize("name", list(READ))
def test_values_of_csv_are_cut_by_nothing_that_the_engine_guesses(tmp_path: Path, name: str) -> None:
    text, options, values = READ[name]
    table, report = converted(tmp_path, "csv", text, **options)
    assert list(table.to_pylist()[-1].values()) == values
    assert report["note"].startswith("read with delimiter ")
    assert report["columns"][1].get("note", "")[:10] == ("each has '" if name == "single quotes" else "")


OPEN = "came file 2 of 2 .* that ends within some, which open in line"
NOT_READ: dict[str, tuple[str, str]] = {
    "a comment": ("# by us\na,b\n1,2\n", "came '# by us'; .* give skip_lines=1"),
    "a line of its delimiter": ("sep=;\na;b\n1;x\n", "came 'sep=;'; .* give skip_lines=1"),
    "an escape": ('a,b\n1,"x"\n2,"say \\"hi\\""\n', r"first 2,048 .*, came 1 or more: line 3 of file 2 .* escape=\\$"),
    "an open quote": (f'a,b\n{LATE}1,"x\n2,y\n', f"{OPEN} 3002;"),
    "an open quote before others": (f'a,b\n{LATE}"1,x\n2,y\n', f"{OPEN} 3002;"),
    "an open quote and a bad line": (f'a,b\n{LATE}1,2,3\n"1,x\n', f"{OPEN} 3003;"),
    "an open quote and doubled ones": ('a,b\n1,"x"\n2,"""y ""z""\n3,""\n', f"{OPEN} 3; .* quote=none"),
    "a quote that may be open": (
        f'a,b\n{LATE}2,"y"z\n9,"y"z"\n{LATE}',
        "line 3003 of file 2 .* skip_bad_lines .*; correct",
    ),
    "an escape that may be open": (f'a,b\n{LATE}9,"\\"y"\n{LATE}', r"line 3002 of file 2 .* give escape=\\$"),
    "another delimiter": ("B;A\n1;x\n", r"one delimiter, .* \(','\), came ';' in file 2 of 2"),
}


@pytest.mark.parametrize("name", list(NOT_READ))
def test_csv_of_which_lines_would_be_lost_is_refused(tmp_path: Path, name: str) -> None:
    text, told = NOT_READ[name]
    with pytest.raises(SourceUnreadable, match=told):
        converted(tmp_path, "csv", 'a,b\n1,"x"\n', text, delimiter="," * ("sep" not in text), skip_bad_lines=2)


def test_an_empty_text_of_csv_is_not_missing(tmp_path: Path) -> None:
    table, _ = converted(tmp_path, "csv", 'a,b\n"",1\n,2\n,\n')
    assert table["a"].to_pylist() == ["", None, None]


def test_an_answer_in_our_own_csv_is_read_as_what_it_was(tmp_path: Path) -> None:
    table = pa.table(
        {
            "text": ["", "x", None],
            "whole": [2**62, None, -1],
            "fraction": [0.1 + 0.2, 1e20, -1e-7],
            "infinite": [math.inf, -math.inf, 0.5],
            "truth": [True, None, False],
            "day": [DAY, None, DAY],
            "moment": [MOMENT, None, MOMENT],
            "in UTC": [IN_UTC, None, IN_UTC],
            "time": [datetime.time(10), None, datetime.time(10, 0, 0, 5)],
        }
    )
    writer = FileFormatWriter(Job(format="csv"), table.schema)
    parts = [writer.head, *(part for one in table.to_batches() for part in writer.message(one)[0]), *writer.foot()[0]]
    found, report = converted(tmp_path, "csv", b"".join(map(bytes, parts)))
    assert found.cast(table.schema).to_pylist() == table.to_pylist()
    assert not any("note" in column for column in report["columns"])


def test_where_numbers_of_csv_are_missing_in_quotes_texts_are_so_too(tmp_path: Path) -> None:
    table, _ = converted(tmp_path, "csv", '"a","b"\n"","1"\n"x",""\n')
    assert table.to_pylist() == [{"a": None, "b": 1}, {"a": "x", "b": None}]


def test_what_stands_for_missing_values_of_csv_does_so_in_quotes_too(tmp_path: Path) -> None:
    table, _ = converted(tmp_path, "csv", 'a,b,c\n"NA",1,""\nx,"NA","NA"\n,2,x\n', null_text="NA")
    assert table.to_pydict() == {"a": [None, "x", ""], "b": [1, None, 2], "c": ["", None, "x"]}


class _Heard:
    """An engine, and the length of what is asked of it each time, without the table."""

    def __init__(self, con: Any) -> None:
        self._con, self.lengths = con, list[int]()

    def sql(self, text: str) -> Any:
        self.lengths.append(len(text.partition(" FROM read_csv")[0]))
        return self._con.sql(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._con, name)


def test_columns_of_wide_csv_are_asked_about_a_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given_back = list[bool]()
    monkeypatch.setattr(csv_source.jemalloc, "purge", lambda: given_back.append(True))
    lines = [",".join(f"{start}{number}" for number in range(120)) for start in ("c", "0.")]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    with duckdb_engine.connect() as con:
        heard = _Heard(con)
        report = csv_source.convert(
            heard, [str(tmp_path / "t.csv")], read_options("csv", {}), str(tmp_path / "out.parquet")
        )
    assert {column["type"] for column in report["columns"]} == {"DOUBLE"}
    assert max(heard.lengths) < 2**16 + 2**12
    assert len(given_back) > 1


def test_columns_of_csv_beside_one_that_stays_text_are_read_as_before(tmp_path: Path) -> None:
    text = 'a;b;c;d\n02.01.2020;9.007.199.254.740.993,0;F;""\n13.01.2020;0,5;F;\n'
    table, _ = converted(tmp_path, "csv", text, decimal=",", thousands=".")
    assert [str(kind) for kind in table.schema.types] == ["date32[day]", "decimal128(38, 1)", "string", "string"]
    day = datetime.date(2020, 1, 2)
    assert list(table.to_pylist()[0].values()) == [day, Decimal(9007199254740993), "F", ""]


@pytest.mark.parametrize("names", ["a,a", "a,A", "a,b,A", 'a,a_1,"A"', "a,b,a "])
def test_names_of_csv_that_differ_in_case_only_are_refused(tmp_path: Path, names: str) -> None:
    with pytest.raises(SourceUnreadable, match="expected columns whose names differ in more than case") as raised:
        converted(tmp_path, "csv", f"{names}\n" + "1,2,3\n"[: 2 * names.count(",") + 1] + "\n")
    assert raised.value.code == "columns_repeated"
    assert ("came a 2 times;" in str(raised.value)) is (names in ("a,a", "a,b,a "))
    assert converted(tmp_path, "csv", "a,a_1,b1,b2\n1,2,3,4\n")[0].column_names == ["a", "a_1", "b1", "b2"]


@pytest.mark.parametrize("names", [",a,b", 'column0,"",b', "column0,column1,b"])
def test_an_owner_is_told_which_column_of_csv_has_no_name(tmp_path: Path, names: str) -> None:
    table, report = converted(tmp_path, "csv", "", f"{names}\n1,x,F\n2,y,F\n")
    told = {column["name"]: column.get("note", "") for column in report["columns"]}
    assert table.num_columns == 3
    empty = ["column0"] if names.startswith(",") else ["column1"] if '"' in names else []
    assert [name for name, note in told.items() if note == "named by us, as it has no name"] == empty
    assert told["b"].startswith("text, as f alone")
    assert not any("note" in one for one in converted(tmp_path, "csv", "1,2\n3,4\n", header=False)[1]["columns"])


def test_names_of_csv_that_are_the_same_are_told_as_that(tmp_path: Path) -> None:
    with pytest.raises(SourceUnreadable, match="came A, a 2 times; rename them"):
        converted(tmp_path, "csv", "a,A,a,b\n1,2,3,4\n")


@pytest.mark.parametrize("name", ["t.json", "T.JSON.gz"])
def test_a_file_of_json_is_taken_for_lines_of_it(tmp_path: Path, name: str) -> None:
    assert guess_kind(str(tmp_path / name)) == "jsonl"


@pytest.mark.parametrize("written", [[""], ["", "\ufeff"]], ids=["one", "two"])
def test_csv_without_a_line_is_refused(tmp_path: Path, written: list[str]) -> None:
    with pytest.raises(SourceUnreadable, match="nothing but empty files"):
        converted(tmp_path, "csv", *written)


ENCODED: dict[str, tuple[bytes, str, str]] = {
    "windows-1252": (b"a,b\n1,\x80\n", "latin-1", "expected text in latin-1, came .* iconv -f windows-1252"),
    "utf-16, not said": ("a,b\n1,x\n".encode("utf-16"), "", "came utf-16 in file 1 of 1 .*; give encoding=utf-16"),
    "big endian": (b"\xfe\xff" + "a,b\n1,x\n".encode("utf-16-be"), "utf-16", "came utf-16 big endian in file 1 of 1"),
}


@pytest.mark.parametrize("name", list(ENCODED))
def test_csv_in_an_encoding_that_is_not_read_is_told_as_that(tmp_path: Path, name: str) -> None:
    text, encoding, told = ENCODED[name]
    with pytest.raises(SourceUnreadable, match=told):
        converted(tmp_path, "csv", text, encoding=encoding)


@pytest.mark.parametrize("lines", [0, 5_000])
def test_csv_in_latin_1_is_told_which_option_reads_it(tmp_path: Path, lines: int) -> None:
    text = "a,b\n" + "1,x\n" * lines + "1,K\xf6ln\n"
    with pytest.raises(SourceUnreadable, match="give encoding=latin-1"):
        converted(tmp_path, "csv", text.encode("latin-1"))
    table, _ = converted(tmp_path, "csv", text.encode("latin-1"), encoding="latin-1")
    assert table["b"].to_pylist()[-1] == "K\xf6ln"


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_full_disk_is_the_operators_and_no_fault_of_the_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    path.write_bytes(WRITTEN[kind])
    with duckdb_engine.connect() as con, pytest.raises(Unavailable, match="make room on the disk") as raised:
        source(kind).convert(con, [str(path)], read_options(kind, {}), "/dev/full")
    assert raised.value.code == "disk_full"


SEVERAL_LINES = ("measured:", "-1,ok", "7,x", 'said "no"', '"', '","', "a,b,c", "", "ü😀", "x" * 90)


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("seed", range(5))
def test_texts_of_several_lines_of_csv_are_whole_wherever_the_engine_takes_up_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, ending: str
) -> None:
    rng = random.Random(seed)
    monkeypatch.setattr("connector.datasets.sources.csv_dialect.LINE_MAX", 4096)  # it reads twice as much at once
    rows, said, bad = [["0", "first"]], io.StringIO(newline=""), 0
    rows += [[str(number), ending.join(["text", *rng.choices(SEVERAL_LINES, k=20)])] for number in range(1, 2000)]
    writer = csv.writer(said, lineterminator=ending, quoting=rng.choice((csv.QUOTE_ALL, csv.QUOTE_MINIMAL)))
    writer.writerow(["id", "note"])
    for row in rows:
        writer.writerow(row)
        if rng.random() < 0.01:
            writer.writerow([row[0], "too", "many"])
            bad += 1
    table, report = converted(tmp_path, "csv", said.getvalue(), skip_bad_lines=bad)
    assert table.to_pydict() == {"id": [int(one) for one, _ in rows], "note": [note for _, note in rows]}
    assert report["left_out_count"] == bad


def taken(folder: Path, rows: Sequence[Sequence[str]], *, told: int | None = None) -> pa.Table:
    """What a draft of these rows, an id and a note each, becomes; `told`: how many the database said that it sent."""
    with (folder / "draft.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL).writerows(rows)
    columns = [["id", "integer", "INTEGER", "", ""], ["note", "text", "VARCHAR", "", ""]]
    target, count = str(folder / "out.parquet"), len(rows) if told is None else told
    options = {"columns": columns, "rows": count, "secured": False}
    with duckdb_engine.connect() as con:
        con.execute("SET memory_limit = '64MB'")
        source("postgres").convert(con, [str(folder / "draft.csv")], options, target)
    return pq.read_table(target)


@pytest.mark.parametrize("seed", range(5))
def test_texts_of_several_lines_of_a_table_are_whole_wherever_the_engine_takes_up_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    rng = random.Random(seed)
    monkeypatch.setattr("connector.datasets.sources.postgres._LINE_MAX", 4096)
    rows = [[str(number), "\n".join(rng.choices(SEVERAL_LINES, k=20))] for number in range(2000)]
    assert taken(tmp_path, rows).to_pydict() == {"id": list(range(2000)), "note": [note for _, note in rows]}


def test_a_row_that_is_too_large_is_told_as_that_and_one_too_many_for_memory_as_no_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(duckdb.OutOfMemoryException):
        taken(tmp_path, [["1", "x" * 2**24]] * 8)
    monkeypatch.setattr("connector.datasets.sources.postgres._LINE_MAX", 2**20)
    with pytest.raises(SourceUnreadable, match="expected rows of at most 1 MB, came a larger one"):
        taken(tmp_path, [["1", "x"], ["2", "x" * 2**20]])


def test_long_texts_need_the_memory_of_some_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("connector.datasets.sources.postgres._LINE_MAX", 2**20)
    monkeypatch.setattr("connector.datasets.sources.to_parquet._GROUP_MB", 4)
    rows = [[str(number), f"{number}\n" * 1600] for number in range(10_000, 20_000)]  # 96 MB
    assert taken(tmp_path, rows).num_rows == 10_000


def test_a_table_of_which_there_are_other_rows_than_its_database_sent_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceUnreadable, match="expected the 3 rows that the database sent, came 2"):
        taken(tmp_path, [["1", "x"], ["2", "y"]], told=3)


CAPITALS, SMALL = "B2DA046C-A0A6-42B2-9D9F-DAC74DBE29D4", "b2da046c-a0a6-42b2-9d9f-dac74dbe29d4"
OF_JSON: dict[str, tuple[Sequence[str], str, Sequence[Any]]] = {
    "numbers": (["0.1", "30", "0.30000000000000004", "1e5"], "DOUBLE", [0.1, 30.0, 0.1 + 0.2, 1e5]),
    "digits beside fractions": (["9007199254740993", "0.5"], "VARCHAR", ["9007199254740993", "0.5"]),
    "many digits": ([f"{'12' * 30}", "1"], "VARCHAR", ["12" * 30, "1"]),
    "too large for a double": (["1e400", "1"], "VARCHAR", ["1e400", "1"]),
    "identifiers": ([f'"{SMALL}"'], "UUID", [uuid.UUID(SMALL)]),
    "identifiers in capitals": ([f'"{SMALL}"', f'"{CAPITALS}"'], "VARCHAR", [SMALL, CAPITALS]),
    "an epoch": (['"2020-01-13"', '"epoch"'], "VARCHAR", ["2020-01-13", "epoch"]),
    "no end": (['"-infinity"'], "VARCHAR", ["-infinity"]),
    "a year of any century": (['"1-1-13"'], "VARCHAR", ["1-1-13"]),
    "nanoseconds": (['"2020-01-13T22:00:00.123456789Z"'], "VARCHAR", ["2020-01-13T22:00:00.123456789Z"]),
    "moments": (['"2020-01-13T22:00:00.000000Z"'], "TIMESTAMP WITH TIME ZONE", [IN_UTC]),
    "a blank after a day": (['"2020-01-13 "'], "VARCHAR", ["2020-01-13 "]),
    "a line end after a moment": (['"2020-01-13 22:00:00\\n"'], "VARCHAR", ["2020-01-13 22:00:00\n"]),
    "a tab before a time": (['"\\t10:00:00"'], "VARCHAR", ["\t10:00:00"]),
    "blanks within a moment": (['"2020-01-13  22:00:00"'], "VARCHAR", ["2020-01-13  22:00:00"]),
    "the end of a day": (['"2020-01-13T24:00:00Z"'], "VARCHAR", ["2020-01-13T24:00:00Z"]),
    "a time that no reader takes": (['"24:00"', '"18:00"'], "VARCHAR", ["24:00", "18:00"]),
    "one in a list": (['["24:00"]', '["18:00"]'], "VARCHAR[]", [["24:00"], ["18:00"]]),
    "several kinds": (["7", '"x"', "null"], "JSON", ["7", '"x"', None]),
}


@pytest.mark.parametrize("name", list(OF_JSON))
def test_values_of_json_lines_are_kept_or_stay_text(tmp_path: Path, name: str) -> None:
    texts, kind, values = OF_JSON[name]
    table, report = converted(tmp_path, "jsonl", "".join(f'{{"a": {text}, "n": null}}\n' for text in texts))
    assert (report["columns"][0]["type"], table["a"].to_pylist()) == (kind, values)
    assert ("note" in report["columns"][0]) == kind.startswith("VARCHAR")


def test_values_within_values_of_json_lines_stay_text_alone(tmp_path: Path) -> None:
    first = f'{{"o": {{"i": ["{CAPITALS}"], "d": "2020-01-13", "n": {2**70}}}, "d": "2020-01-13"}}\n'
    table, report = converted(tmp_path, "jsonl", first + '{"o": {"n": -0.5}}\n')
    assert table.to_pylist() == [
        {"o": {"i": [CAPITALS], "d": DAY, "n": 2.0**70}, "d": DAY},
        {"o": {"i": None, "d": None, "n": -0.5}, "d": None},
    ]
    assert [column.get("note", "")[:17] for column in report["columns"]] == ["in part text, as ", ""]


@pytest.mark.parametrize(
    "second", ["0.12345678901234567891", '{"b": 0.12345678901234567891}', '[1, "x", 1.2345678901234567891]']
)
def test_lines_of_json_with_more_digits_than_any_type_keeps_are_refused(tmp_path: Path, second: str) -> None:
    told = r"came 1 or more: line 3 of file 2 \(a number of more digits than a DOUBLE keeps; write it as text\)"
    with pytest.raises(SourceUnreadable, match=told):
        converted(tmp_path, "jsonl", '{"a": 1}\n', f'\n{{"a": 0.5}}\n{{"a": {second}}}\n')


NO_JSON = {
    "a comma before the end": ('{"a": 1,}', "no json at character"),
    "a comma before the end of a list": ('{"a": 1, "l": [1, 2, ]}', "no json at character"),
    "NaN": ('{"a": NaN}', "NaN, which JSON does not have; write null"),
    "no end": ('{"a": 1, "l": [-Infinity]}', "-Infinity, which JSON does not have; write null"),
    "a constant of others": ('{"a": 1, "l": -inf}', "no json at character"),
    "one beside texts": ('{"a": "x", "l": {"m": NaN }}', "NaN, which JSON does not have; write null"),
}


@pytest.mark.parametrize("name", list(NO_JSON))
def test_lines_that_are_json_to_the_engine_alone_are_refused(tmp_path: Path, name: str) -> None:
    line, told = NO_JSON[name]
    with pytest.raises(SourceUnreadable, match=rf"came 1 or more: line 2 \({told}") as raised:
        converted(tmp_path, "jsonl", f'{{"a": 1}}\n{line}\n')
    assert raised.value.code == "lines_unreadable"


def test_what_looks_like_no_json_within_a_text_is_kept(tmp_path: Path) -> None:
    texts = ["[1, ]", '{"a": NaN}', "so: Infinity, or -inf]"]
    lines = "".join(f"{json.dumps({'a': text, 'b': 0.5})}\n" for text in texts)
    assert converted(tmp_path, "jsonl", lines)[0]["a"].to_pylist() == texts


NO_TABLE = {
    "numbers": (["1\n2\n"], r"line 1 \(no object\), line 2 \(no object\)"),
    "lists": (["[1]\n[2]\n"], r"line 1 \(a list; write each object as a line of its own\)"),
    "one list": (['[{"a": 1},{"a": 2}]\n'], r"line 1 \(a list; write each object as a line of its own\)"),
    "one list of many lines": (['[\n{"a": 1}\n]\n'], r"line 1 \(a list; write each object as a line of its own\)"),
    "a key without a name": (['{"": 1, "b": 2}\n'], "1 to 2000 different keys, none of them empty"),
    "too many keys": (["".join(f'{{"k{key}": {key}}}\n' for key in range(2500))], "1 to 2000 different keys"),
    "nothing": (["", "\n"], "expected a line at least, came nothing but empty files"),
    "empty objects": (["{}\nnull\n"], "came others or none"),
    "names": (['{"a": 1, "A": 2}\n'], "differ in more than case, came A, a"),
    "names of two files": (['{"a": 1}\n', '{"A": 1}\n'], "differ in more than case, came A, a"),
    "names within": (['{"o": {"a": 1}}\n{"o": {"A": 2}}\n'], "differ in more than case, came A and another"),
}


@pytest.mark.parametrize("name", list(NO_TABLE))
def test_json_lines_that_make_no_table_are_refused_with_the_reason(tmp_path: Path, name: str) -> None:
    written, told = NO_TABLE[name]
    with pytest.raises(SourceUnreadable, match=told):
        converted(tmp_path, "jsonl", *written)


def test_a_key_of_json_lines_may_have_the_name_that_the_engine_gives(tmp_path: Path) -> None:
    assert converted(tmp_path, "jsonl", '{"json": 1}\n')[0].to_pylist() == [{"json": 1}]
    assert converted(tmp_path, "jsonl", '{"a": 1, "a_1": 2}\n')[0].to_pylist() == [{"a": 1, "a_1": 2}]


@pytest.mark.parametrize("depth", [0, -1])
def test_a_depth_of_json_lines_that_cannot_be_is_refused(tmp_path: Path, depth: int) -> None:
    with pytest.raises(Invalid, match=f"expected max_depth to be 1 or more, came {depth}"):
        source("jsonl").find(str(tmp_path), roots=[tmp_path], options={"max_depth": depth})


WRITTEN = {"csv": b"a,b\n" + b"1,2\n" * 1000, "jsonl": b'{"a": 1, "b": 2}\n' * 1000}
UNPACKED: Mapping[str, Callable[[bytes], bytes]] = {
    "cut": lambda whole: whole[:-20],
    "not compressed": gzip.decompress,
    "padded": lambda whole: whole + bytes(100),
    "with something after it": lambda whole: whole + b"1,2\n",
    "of another check sum": lambda whole: whole[:-8] + bytes(4) + whole[-4:],
}


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.parametrize("name", list(UNPACKED))
def test_a_compressed_file_that_is_not_whole_is_named(tmp_path: Path, kind: str, name: str) -> None:
    whole = gzip.compress(WRITTEN[kind])
    with pytest.raises(SourceUnreadable, match="expected whole gzip files, came file 2 of 2"):
        converted(tmp_path, kind, whole, UNPACKED[name](whole), ending=f"{kind}.gz")


def test_a_compressed_file_may_have_several_members(tmp_path: Path) -> None:
    parts = gzip.compress(b"a,b\n1,2\n") + gzip.compress(b"3,4\n")
    assert converted(tmp_path, "csv", parts, ending="csv.gz")[0].to_pylist() == [{"a": 1, "b": 2}, {"a": 3, "b": 4}]


@pytest.mark.parametrize(("kind", "ending"), [("csv", "tsv.gz"), ("jsonl", "ndjson.gz")])
def test_a_directory_has_its_compressed_files_of_every_name(tmp_path: Path, kind: str, ending: str) -> None:
    for name in (f"a.{kind}", f"b.{ending}"):
        (tmp_path / name).write_bytes(b"")
    found = source(kind).find(str(tmp_path), roots=[tmp_path], options=read_options(kind, {}))
    assert [one.name for one in found] == [f"a.{kind}", f"b.{ending}"]
    assert guess_kind(str(tmp_path / f"b.{ending}")) == kind
