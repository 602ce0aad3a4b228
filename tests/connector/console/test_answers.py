"""What the query page makes of an answer: a chart."""

from __future__ import annotations

from typing import Any

import pytest

from connector.console.view.chart import chart


def columns(**kinds: str) -> list[dict[str, Any]]:
    return [{"name": name, "type": kind, "number": kind != "string" and kind != "date32[day]"}
            for name, kind in kinds.items()]  # fmt: skip


CHARTS = [
    ("bars for few names", columns(ward="string", n="int64"), [["a", "3"], ["<b>", "-4"]], "rect", "&lt;b&gt;"),
    ("a line for days", columns(day="date32[day]", n="int64"), [["2020-02-01", "1"], ["2020-01-01", "2"]], "polyline",
     "2020-01-01"),
    ("two numbers", columns(year="int32", n="int64"), [["2020", "1"], ["2021", "2000"]], "rect", "2,000"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "shown", "rows", "kind", "text"), CHARTS, ids=[case[0] for case in CHARTS])
def test_an_answer_that_a_chart_can_show_has_one(name: str, shown: Any, rows: Any, kind: str, text: str) -> None:
    drawn = chart({"columns": shown, "rows": rows})
    assert f"<{kind}" in drawn
    assert text in drawn
    assert "<b>" not in drawn
    assert drawn.startswith(f'<p class="faint">n by {shown[0]["name"]}</p>')


NONE = [
    ("one row", columns(ward="string", n="int64"), [["a", "3"]]),
    ("no number", columns(ward="string", word="string"), [["a", "x"], ["b", "y"]]),
    ("too many names", columns(ward="string", n="int64"), [[str(n), "1"] for n in range(200)]),
    ("nothing but nulls", columns(ward="string", n="int64"), [["a", None], ["b", None]]),
]


@pytest.mark.parametrize(("name", "shown", "rows"), NONE, ids=[case[0] for case in NONE])
def test_an_answer_that_a_chart_says_nothing_about_has_none(name: str, shown: Any, rows: Any) -> None:
    assert chart({"columns": shown, "rows": rows}) == ""
