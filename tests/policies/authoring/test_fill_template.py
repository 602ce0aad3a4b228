"""A ready-made offer for the columns of a dataset: what stays, what is proposed, and what is never shown."""

from __future__ import annotations

import pytest

from policies.authoring import convert
from policies.authoring.fill_template import ColumnFigures, fill_template, measure_range

COLUMNS = [
    ColumnFigures("patient_id", "BIGINT", 1000, "1", "1000"),
    ColumnFigures("age", "INTEGER", 80, "3", "97"),
    ColumnFigures("region", "VARCHAR", 5, "a", "z"),
    ColumnFigures("hb", "DOUBLE", 700, "-3.2", "17.9"),
    ColumnFigures("email", "VARCHAR", 900, "A", "Z"),
]


@pytest.mark.parametrize("name", convert.TEMPLATES)
def test_a_filled_template_names_columns_of_the_dataset_only(name: str) -> None:
    form = fill_template(convert.read_form(convert.template(name)), COLUMNS, dataset="patients")
    named = {*form.columns.hide, *form.columns.only, *dict(form.group_by), *dict(form.measure), form.limits.per}
    named |= {mask.column for mask in form.columns.masks}
    assert named - {""} <= {one.name for one in COLUMNS}
    assert convert.read_form(convert.write_form(form)) == form
    assert (form.dataset, form.rows) == ("patients", "")
    assert not dict(form.group_by).keys() & dict(form.measure).keys()  # a column is one or the other


def test_figures_are_proposed_where_the_template_knows_other_columns() -> None:
    form = fill_template(convert.read_form(convert.template("clean-room")), COLUMNS, dataset="patients")
    assert form.limits.per == "patient_id"
    assert form.columns.hide == ("email",)
    assert form.group_by == (("region", "exact"),)
    assert form.measure == (("age", "0..100"), ("hb", "-5..20"))


def test_a_list_of_columns_that_the_dataset_lacks_shows_none() -> None:
    form = convert.read_form("offer: o\ndataset: d\nmay: [query]\ncolumns: {only: [steps, pulse]}\n")
    filled = fill_template(form, COLUMNS, dataset="patients")
    assert (filled.columns.only, filled.columns.hide) == ((), tuple(one.name for one in COLUMNS))


@pytest.mark.parametrize(
    ("kind", "least", "greatest", "bounds"),
    [
        ("DOUBLE", "-3.2", "17.9", "-5..20"),
        ("INTEGER", "0", "100", "0..100"),
        ("INTEGER", "0", "101", "0..200"),
        ("BIGINT", "-7", "-2", "-10..0"),
        ("DOUBLE", "0.0004", "0.03", "0..0.05"),
        ("DOUBLE", "1", "6e12", "0..10000000000000"),
        ("DOUBLE", "nan", "1", ""),
        ("DOUBLE", "-inf", "1", ""),
        ("INTEGER", "5", "5", ""),
        ("VARCHAR", "1", "9", ""),
        ("INTEGER", None, "9", ""),
    ],
)
def test_bounds_are_rounded_outwards(kind: str, least: str | None, greatest: str, bounds: str) -> None:
    assert measure_range(ColumnFigures("v", kind, 9, least, greatest)) == bounds
