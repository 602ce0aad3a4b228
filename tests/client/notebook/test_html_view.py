"""What prompts and notebooks show: one line or a small table, escaped, bounded, without terms and secrets."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hanse.agreement import Name, TransferAccess
from hanse.client import Dataset, Space
from hanse.explanation import Explained
from hanse.notebook.found import Entries, Entry
from hanse.notebook.html_view import clip, facts_table, rows_table
from hanse.plan import Plan, PlanBlock

from tests.client.support import batch, chunked, complete, connector, ipc, owned

HOSTILE = "<script>alert(1)</script>\x1b[31m\u202e"
LONG_MAX = 20_000  # characters of HTML, however large the value is


def entry(**other: Any) -> Entry:
    known = {"path": "north/flights", "name": "flights", "participant": "north", "title": "T", "description": "D"}
    return Entry(**{**known, "columns": ("a", "b"), "sentences": (), "raw": {}, **other})


def hostile_space(url: str = "http://127.0.0.1:1") -> Space:
    return Space(url, "SECRET")


def things() -> list[Any]:
    """One of each, made of what another party may send."""
    access = TransferAccess(Name("north", HOSTILE), HOSTILE, HOSTILE, "t", HOSTILE)
    schema = pa.schema([(HOSTILE, pa.int64())])
    plan = Plan(HOSTILE, "p", schema, (PlanBlock(1, 8),) * 5000, 5000, exact=True, where=HOSTILE)
    found = entry(path=HOSTILE, title=HOSTILE, description=HOSTILE, columns=(HOSTILE,) * 5000, sentences=(HOSTILE,) * 9)
    return [hostile_space(), Dataset(hostile_space(), access), plan, found, Entries([found] * 500)]


@pytest.mark.parametrize("thing", things(), ids=lambda thing: type(thing).__name__)
def test_what_others_named_is_escaped_and_bounded(thing: Any) -> None:
    html = thing._repr_html_()
    assert "<script" not in html
    assert len(html) <= LONG_MAX
    for text in (html, repr(thing)):
        assert not {"\x1b", "\u202e"} & {*text}
        assert len(text) <= LONG_MAX


def test_a_space_shows_no_token_and_no_login_of_its_address() -> None:
    space = hostile_space("http://anna:PASSWORD@127.0.0.1:1/base")
    for text in (repr(space), space._repr_html_()):
        assert "127.0.0.1:1/base" in text
        assert "SECRET" not in text
        assert "PASSWORD" not in text


def test_a_found_dataset_is_one_line_without_its_terms() -> None:
    offers = [{"sentences": ["a page of terms"]}]
    found = entry(sentences=("a page of terms",), raw={"offers": offers, "column_count": 250})
    assert repr(found) == "<Entry north/flights 'T', 250 columns, 1 offer>"
    assert "a page of terms" not in repr(found) + found._repr_html_()
    assert "space.agree(&#x27;north/flights&#x27;" in found._repr_html_()


def test_a_search_shows_the_first_and_how_many_more() -> None:
    found = Entries([entry(path=f"north/d{number}") for number in range(50)])
    assert repr(found).count("<Entry") == 20
    assert "and 30 more" in repr(found)
    assert "<p>30 more rows</p>" in found._repr_html_()
    assert repr(Entries()) == "[]"


def test_a_dataset_shows_purpose_and_agreement() -> None:
    access = TransferAccess(Name("north", "flights"), "urn:hanse:north:flights", "agr", "trf", "dpv:X")
    html = Dataset(hostile_space(), access)._repr_html_()
    assert all(told in html for told in ("north/flights", "dpv:X", "agr"))
    assert "SECRET" not in html


def test_an_answer_shows_its_rows_once_it_keeps_them() -> None:
    with owned(chunked(ipc([batch(*range(100))], complete(100)))) as people:
        stream = people.stream()
        assert "age int64, name string" in stream._repr_html_()
        assert stream.rows == 0
        stream.to_arrow()
    html = stream._repr_html_()
    assert ">n19<" in html
    assert ">n20<" not in html
    assert "80 more rows" in html


@pytest.mark.parametrize(
    ("column", "told"),
    [
        (pa.array([b"\x00\xff"]), "&lt;binary&gt;"),
        (pa.array([[1, 2]]), "&lt;list"),
        (pa.array(["x" * 10_000]), "x" * 319 + "…"),
        (pa.array([2**62], pa.timestamp("s")), "</td>"),
        (pa.array(["a"]).dictionary_encode(), ">a<"),
        (pa.array([3], pa.duration("s")), "</td>"),
        (pa.array([None], pa.int64()), "></td>"),
    ],
    ids=lambda value: str(getattr(value, "type", "")),
)
def test_each_type_of_value_is_shown_or_named(column: pa.Array, told: str) -> None:
    rows = pa.record_batch([column], names=["v"])
    with connector() as served, hostile_space(served.url) as space:
        served.routes["POST", "/queries"] = chunked(ipc([rows], complete(1), schema=rows.schema))
        answer = space.query("SELECT 1")
        answer.to_arrow()
    assert told in answer._repr_html_()


def test_an_explanation_is_one_line() -> None:
    shown = Explained(fragments=[{"sql": "SELECT"}], bytes_estimate=1200, svg="<svg></svg>", text="t")
    assert repr(shown) == "<Explained, 1 fragments, about 1,200 bytes; print it for the text>"


def test_a_table_has_at_most_twenty_columns() -> None:
    html = rows_table("t", [f"c{number}" for number in range(30)], [range(30)], total=1)
    assert html.count("<th ") == 20
    assert "10 more columns" in html


def test_facts_without_a_value_are_left_out() -> None:
    assert "where" not in facts_table("t", [("where", ""), ("rows", 0)])


def test_a_text_is_cut_and_in_one_line() -> None:
    assert clip("a\n b\t" + "c" * 100, 10) == "a b cccc…"
