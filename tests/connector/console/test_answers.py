"""What the query page makes of an answer and of messages: a chart, a sentence."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, TypeAlias
from xml.etree.ElementTree import Element, fromstring

import pytest

from connector.console.view import axes, formatting
from connector.console.view.chart import chart


def columns(**kinds: str) -> list[dict[str, Any]]:
    return [{"name": name, "type": kind, "number": kind != "string" and kind != "date32[day]"}
            for name, kind in kinds.items()]  # fmt: skip


Table: TypeAlias = dict[str, Any]
SVG = "{http://www.w3.org/2000/svg}"


def draw(table: Table) -> Element:
    """The chart's SVG, parsed."""
    svg = chart(table)[chart(table).index("<svg") :]
    return fromstring(svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))


def texts(svg: Element, kind: str) -> list[str]:
    return [one.text or "" for one in svg.iter(f"{SVG}text") if one.get("class") == kind]


def test_bars_have_all_keys_in_their_labels() -> None:
    rows = [["no", "Pre", "5", "51.2"], ["no", "Post", "6", "54"], ["yes", "Pre", "7", "49"], ["yes", None, "8", "57"]]
    svg = draw({"columns": columns(smoker="string", stage="string", n="int64", age="double"), "rows": rows})
    assert texts(svg, "key") == ["no · Pre", "no · Post", "yes · Pre", "yes · null"]
    assert texts(svg, "axis-name") == ["smoker, stage", "age"]
    assert texts(svg, "value") == ["51.2", "54", "49", "57"]


def test_bars_stay_in_the_picture_with_many_keys() -> None:
    names = {f"k{number}": "string" for number in range(30)}
    rows = [["x"] * 29 + [word, "3"] for word in ("a", "b")]
    svg = draw({"columns": columns(**names, n="int64"), "rows": rows})
    bars = [(float(one.get("x", "")), float(one.get("width", ""))) for one in svg.iter(f"{SVG}rect")]
    assert all(x >= 0 and x + width <= 680 for x, width in bars)
    assert all(float(one.get("x", "")) < bars[0][0] for one in svg.iter(f"{SVG}text") if one.get("class") == "key")


def test_a_number_is_a_key_where_rows_are_alike_without_it() -> None:
    rows = [["a", "2020", "3"], ["a", "2021", "4"], ["b", "2020", "5"]]
    svg = draw({"columns": columns(ward="string", year="int32", n="int64"), "rows": rows})
    assert texts(svg, "key") == ["a · 2020", "a · 2021", "b · 2020"]


def test_bars_begin_at_zero_and_are_as_long_as_their_values() -> None:
    rows = [["a", "-4"], ["<b>", "8"], ["c", "0"], ["d", "2000"]]
    svg = draw({"columns": columns(ward="string", n="int64"), "rows": rows})
    bars = [(float(one.get("x", "")), float(one.get("width", ""))) for one in svg.iter(f"{SVG}rect")]
    zero = next(float(one.get("x1", "")) for one in svg.iter(f"{SVG}line") if one.get("class") == "axis")
    assert bars[0][0] + bars[0][1] == pytest.approx(zero, abs=0.2)
    assert [left for left, _ in bars[1:]] == pytest.approx([zero] * 3, abs=0.2)
    assert bars[3][1] == pytest.approx(250 * bars[1][1], rel=0.1)
    assert bars[2][1] == 0
    assert texts(svg, "value") == ["-4", "8", "0", "2,000"]
    assert "0" in texts(svg, "tick")
    assert texts(svg, "key")[1] == "<b>"
    assert "<b>" not in chart({"columns": columns(ward="string", n="int64"), "rows": rows})


@pytest.mark.parametrize(
    ("kind", "times"),
    [
        ("date32[day]", ["2020-01-11", "2020-01-01", "2020-01-02"]),
        ("timestamp[us, tz=UTC]", ["2020-01-01T10:00:00+00:00", "2020-01-01T00:00:00+00:00", "2020-01-01 01:00:00Z"]),
        ("timestamp[ns]", ["2020-01-01 00:00:10.000000001", "2020-01-01 00:00:00.000000000", "2020-01-01 00:00:01"]),
        ("time64[us]", ["10:00:00", "00:00:00", "01:00:00"]),
    ],
)
def test_the_points_of_a_line_stand_where_their_times_are(kind: str, times: list[str]) -> None:
    rows = [[time, value] for time, value in zip(times, ["30", "10", "12.5"], strict=True)]
    shown = [*columns(day="date32[day]"), *columns(n="double")]
    shown[0]["type"] = kind
    svg = draw({"columns": shown, "rows": rows})
    (line,) = svg.iter(f"{SVG}polyline")
    points = [tuple(map(float, point.split(","))) for point in line.get("points", "").split()]
    (x0, y0), (x1, y1), (x2, y2) = points
    assert (x1 - x0) / (x2 - x0) == pytest.approx(0.1, abs=0.01)
    assert (y0 - y1) / (y0 - y2) == pytest.approx(0.125, abs=0.01)
    names = texts(svg, "axis-name")
    assert names == ["n", "day (UTC)" if "tz" in kind else "day"]
    assert len(texts(svg, "tick")) >= 6


def test_other_keys_are_lines_of_their_own() -> None:
    rows = [[f"2020-0{month}-01", site, str(month)] for month in range(1, 5) for site in ("north", "south")]
    svg = draw({"columns": columns(day="date32[day]", site="string", n="int64"), "rows": rows})
    assert [one.get("class") for one in svg.iter(f"{SVG}polyline")] == ["drawn series-0", "drawn series-1"]
    assert texts(svg, "key") == ["north", "south"]
    assert texts(svg, "axis-name") == ["n", "day", "site"]
    assert [text for text in texts(svg, "tick") if "-" in text] == ["2020-01", "2020-02", "2020-03", "2020-04"]


def test_rows_of_one_time_are_bars() -> None:
    rows = [["2020-01-01", "north", "5"], ["2020-01-01", "south", "7"]]
    svg = draw({"columns": columns(day="date32[day]", site="string", n="int64"), "rows": rows})
    assert texts(svg, "key") == ["2020-01-01 · north", "2020-01-01 · south"]


def test_of_many_groups_the_first_are_drawn_and_the_chart_says_so() -> None:
    table = {"columns": columns(ward="string", n="int64"), "rows": [[f"ward {n}", "1"] for n in range(150)]}
    assert len([*draw(table).iter(f"{SVG}rect")]) == 30
    assert "n by ward; the first 30 of 150 rows" in chart(table)


VALUES = [[0.0, 1.0], [-5.0, 5.0], [3.0, 3.0], [0.0, 0.0], [1e-9, 3e-9], [1e12, 5e15], [98.5, 99.25], [-1200.0, -3.0]]
VALUES += [[7866.340851152702, 7866.340851152703], [0.3, 0.1 + 0.2], [1e17, 1e17], [1e16, 1e16 + 2]]  # the last digit
VALUES += [[1e12, 1e12 + 1000], [1.00001, 1.00004], [-1e299, 1e300]]


@pytest.mark.parametrize("values", VALUES, ids=str)
@pytest.mark.parametrize("zero", [True, False])
def test_an_axis_has_round_ticks_around_all_values(values: list[float], zero: bool) -> None:
    axis = axes.value_axis(values, zero=zero)
    rounding = 1e-12 * max(map(abs, values))
    assert axis.least <= min(values) + rounding
    assert axis.most >= max(values) - rounding
    assert 2 <= len(axis.ticks) <= 8
    assert len({tick.label for tick in axis.ticks}) == len(axis.ticks)
    assert [tick.at for tick in axis.ticks] == sorted(tick.at for tick in axis.ticks)
    assert not zero or any(tick.label == "0" for tick in axis.ticks)


@pytest.mark.parametrize("seconds", [0.5, 3, 90, 4_000, 90_000, 8e5, 5e6, 4e7, 9e8, 6e10])
def test_a_time_axis_has_different_labels_in_order(seconds: float) -> None:
    axis = axes.time_axis([1_583_020_800.0, 1_583_020_800.0 + seconds])
    labels = [tick.label for tick in axis.ticks]
    assert 2 <= len(labels) <= 9
    assert len(set(labels)) == len(labels)
    assert all(axis.least <= tick.at <= axis.most for tick in axis.ticks)


def test_a_time_axis_over_years_says_the_years() -> None:
    ends = [axes.read_time(day) or 0.0 for day in ("0001-01-01", "9999-12-31")]
    labels = [tick.label for tick in axes.time_axis(ends).ticks]
    assert labels == [f"{year}000" for year in range(1, 10)]
    turn = [axes.read_time(moment) or 0.0 for moment in ("2023-12-31 20:00", "2024-01-01 04:00")]
    assert axes.time_axis(turn).ticks[-1].label.startswith("2024-01-01")


NONE = [
    ("one row", columns(ward="string", n="int64"), [["a", "3"]]),
    ("no number", columns(ward="string", word="string"), [["a", "x"], ["b", "y"]]),
    ("rows that are alike", columns(ward="string", n="int64"), [["a", "1"], ["a", "2"]]),
    ("no finite number", columns(ward="string", n="double"), [["a", "inf"], ["b", "nan"]]),
    ("numbers too large to draw", columns(ward="string", n="double"), [["a", "1.7e308"], ["b", "-1.7e308"]]),
    ("numbers too small to draw", columns(ward="string", n="double"), [["a", "5e-324"], ["b", "1e-323"]]),
    ("nothing but nulls", columns(ward="string", n="int64"), [["a", None], ["b", None]]),
]


@pytest.mark.parametrize(("name", "shown", "rows"), NONE, ids=[case[0] for case in NONE])
def test_an_answer_that_a_chart_says_nothing_about_has_none(name: str, shown: Any, rows: Any) -> None:
    assert chart({"columns": shown, "rows": rows}) == ""


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("temp is not allowed here", "temp is not allowed here."),
        ("http://peer.example/dsp does not answer.", "http://peer.example/dsp does not answer."),
        ("did:web:north.example is no member", "did:web:north.example is no member."),
        ("  ", ""),
    ],
)
def test_a_message_keeps_its_first_word_as_it_is(message: str, shown: str) -> None:
    assert formatting.sentence(message) == shown
    templates = Path(formatting.__file__).with_name("templates").rglob("*.html")
    assert not [one.name for one in templates if re.search(r"message\s*\|\s*(capitalize|title|upper)", one.read_text())]
