"""Values by declared type, and the operators over them, as tables."""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from typing import Any

import pytest

from policies.evaluation import operators, values
from policies.evaluation.values import DAY, SECOND, Duration, Instant
from policies.vocabulary import ValueType, expand

EEA, EU, EFTA = (values.REGION + name for name in ("EEA", "EU", "EFTA"))


@pytest.mark.parametrize(
    ("type_", "text", "same"),
    [
        (ValueType.DECIMAL, "10", "10.0"),
        (ValueType.DECIMAL, "-0", "0"),
        (ValueType.DECIMAL, "+0.50", "0.5"),
        (ValueType.INTEGER, "5.0", "5"),
        (ValueType.INSTANT, "2027-12-31T23:59:59+01:00", "2027-12-31T22:59:59Z"),
        (ValueType.INSTANT, "2027-12-31T24:00:00Z", "2028-01-01T00:00:00Z"),
        (ValueType.INSTANT, "2027-12-31T22:59:59.000000000Z", "2027-12-31T22:59:59Z"),
        (ValueType.DURATION, "P1Y", "P12M"),
        (ValueType.DURATION, "PT60M", "PT1H"),
        (ValueType.DURATION, "P2W", "P14D"),
        (ValueType.PLACE, "de", "DE"),
        (ValueType.PLACE, "EL", "GR"),
        (ValueType.PLACE, "EEA", "ds:region/EEA"),
        (ValueType.PLACE, "EU", EU),
        (ValueType.IRI, "dpv:Marketing", "https://w3id.org/dpv#Marketing"),
        (ValueType.GRID, "10.0", "10"),
        (ValueType.RANGE, "0..3000", "0.0..3000.00"),
    ],
)
def test_two_spellings_of_a_value_are_the_same(type_: ValueType, text: str, same: str) -> None:
    assert values.canonical_text(type_, text) == values.canonical_text(type_, same)
    assert values.parse(type_, text) == values.parse(type_, same)


@pytest.mark.parametrize(
    ("type_", "one", "other"),
    [
        (ValueType.DURATION, "PT60M", "P60M"),
        (ValueType.DURATION, "P1M", "P30D"),
        (ValueType.INSTANT, "2027-12-31", "2027-12-31T00:00:00Z"),
        (ValueType.INSTANT, "2027-12-31T00:00:00", "2027-12-31T00:00:00Z"),
        (ValueType.TEXT, "active", "Active"),
        (ValueType.TEXT, "10", "10.0"),
    ],
)
def test_values_that_only_look_alike_are_told_apart(type_: ValueType, one: str, other: str) -> None:
    assert values.canonical_text(type_, one) != values.canonical_text(type_, other)


@pytest.mark.parametrize(
    ("type_", "text"),
    [
        (ValueType.DECIMAL, "ten"),
        (ValueType.DECIMAL, "1e3"),
        (ValueType.DECIMAL, "NaN"),
        (ValueType.DECIMAL, "١٠"),
        (ValueType.DECIMAL, "10\n"),
        (ValueType.DECIMAL, "9" * 41),
        (ValueType.INTEGER, "2.5"),
        (ValueType.INSTANT, "2027-02-29T00:00:00Z"),
        (ValueType.INSTANT, "2027-01-01T25:00:00Z"),
        (ValueType.INSTANT, "2027-01-01T24:00:01Z"),
        (ValueType.INSTANT, "2027-01-01T00:00:00+15:00"),
        (ValueType.INSTANT, "2027-01-01 00:00:00Z"),
        (ValueType.INSTANT, "tomorrow"),
        (ValueType.DURATION, "30 days"),
        (ValueType.DURATION, "P"),
        (ValueType.DURATION, "P1DT"),
        (ValueType.DURATION, "-P1D"),
        (ValueType.PLACE, "DEU"),
        (ValueType.PLACE, "ds:region/ATLANTIS"),
        (ValueType.IRI, "two words"),
        (ValueType.IRI, ""),
        (ValueType.GRID, "0"),
        (ValueType.GRID, "coarse"),
        (ValueType.RANGE, "10..1"),
        (ValueType.RANGE, "10"),
        (ValueType.LEVEL, "gold"),
        (ValueType.TEXT, "x" * 20_001),
    ],
)
def test_a_value_of_the_wrong_kind_says_what_was_expected(type_: ValueType, text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        values.parse(type_, text, "", ("base", "trust"))


def test_a_datatype_decides_between_day_and_moment() -> None:
    assert values.instant("2027-12-31", expand("xsd:date")).end - values.instant("2027-12-31").start == DAY
    with pytest.raises(ValueError, match="expected a day"):
        values.instant("2027-12-31T00:00:00Z", expand("xsd:date"))
    with pytest.raises(ValueError, match="expected a time"):
        values.instant("2027-12-31", expand("xsd:dateTime"))


@pytest.mark.parametrize(
    ("start", "span", "end"),
    [
        ("2027-01-31T12:00:00Z", "P1M", "2027-02-28T12:00:00Z"),
        ("2028-01-31T12:00:00Z", "P1M", "2028-02-29T12:00:00Z"),
        ("2027-12-15T00:00:00Z", "P1M", "2028-01-15T00:00:00Z"),
        ("2028-02-29T00:00:00Z", "P1Y", "2029-02-28T00:00:00Z"),
        ("2027-03-27T12:00:00Z", "P1D", "2027-03-28T12:00:00Z"),
        ("1969-12-31T23:00:00Z", "P1M", "1970-01-31T23:00:00Z"),
        ("2027-01-01T00:00:00Z", "P1Y2M3DT4H5M6S", "2028-03-04T04:05:06Z"),
    ],
)
def test_a_duration_is_added_by_the_calendar(start: str, span: str, end: str) -> None:
    moment = values.instant(start).start
    assert values.add_duration(moment, values.duration(span)) == values.instant(end).start


def test_a_duration_beyond_the_calendar_never_ends() -> None:
    assert values.add_duration(0, Duration(months=12 * 9_000, nanoseconds=0)) == values.FOREVER


def test_a_clock_reading_is_written_in_utc() -> None:
    assert values.format_time(values.instant("2027-12-31T22:59:59Z").start / SECOND) == "2027-12-31T22:59:59Z"
    assert values.format_time(1e20) == "1e+20"


@pytest.mark.parametrize(
    ("low", "high", "below"),
    [
        ("DE", EU, True),
        ("DE", EEA, True),
        ("NO", EEA, True),
        ("NO", EU, False),
        ("CH", EFTA, True),
        ("CH", EEA, False),
        ("GB", EEA, False),
        (EU, EEA, True),
        (EEA, EU, False),
        ("DE", "DE", True),
        ("DE", "DED", False),
        ("https://w3id.org/dpv#TargetedAdvertising", "https://w3id.org/dpv#Marketing", True),
        ("https://example.org/a/b", "https://example.org/a", False),
    ],
)
def test_what_lies_below_what(low: str, high: str, below: bool) -> None:
    assert values.is_below(low, high) is below


D = Decimal
SETS: list[tuple[str, list[Any], list[Any], bool | None]] = [
    ("eq", ["a"], ["a"], True),
    ("eq", ["a"], ["b"], False),
    ("eq", ["a", "b"], ["a"], None),
    ("neq", ["a"], ["b"], True),
    ("neq", ["a", "b"], ["c"], None),
    ("lt", [D(9)], [D(10)], True),
    ("lteq", [D(10)], [D(10)], True),
    ("gt", [D(10)], [D(9)], True),
    ("gteq", [D(9)], [D(10)], False),
    ("lt", ["9"], ["10"], None),
    ("isAnyOf", ["a", "b"], ["b", "c"], True),
    ("isAnyOf", ["a"], ["b"], False),
    ("isNoneOf", ["a"], ["b"], True),
    ("isNoneOf", ["a", "b"], ["b"], False),
    ("isAllOf", ["a", "b"], ["a"], True),
    ("isAllOf", ["a"], ["a", "b"], False),
    ("isPartOf", ["DE"], [EEA], True),
    ("isPartOf", ["DE", "US"], [EEA], False),
    ("isPartOf", ["DE", "CH"], [EEA, EFTA], True),
    ("isPartOf", [EEA], ["DE"], False),
    ("hasPart", [EEA], ["DE", "NO"], True),
    ("hasPart", [EU], ["DE", "NO"], False),
    ("hasPart", ["DE"], [EEA], False),
    ("isA", [expand("dpv:AcademicResearch")], [expand("dpv:ResearchAndDevelopment")], True),
    ("isA", [expand("dpv:ResearchAndDevelopment")], [expand("dpv:AcademicResearch")], False),
    ("lt", [Duration(1, 0)], [Duration(0, 32 * DAY)], True),
    ("lt", [Duration(1, 0)], [Duration(0, 30 * DAY)], None),
    ("eq", [Duration(12, 0)], [Duration(12, 0)], True),
    ("gt", [Duration(0, 27 * DAY)], [Duration(1, 0)], False),
    ("lt", [Instant(1, 1)], [Instant(2, 2)], True),
    ("gteq", [Instant(1, 3)], [Instant(2, 2)], None),
]


@pytest.mark.parametrize(("operator", "left", "right", "expected"), SETS)
def test_an_operator_means_what_the_table_says(
    operator: str, left: list[Any], right: list[Any], expected: bool | None
) -> None:
    assert operators.compile_comparison(operator, right)(left) is expected


def test_every_operator_of_the_protocol_has_a_meaning() -> None:
    from policies.vocabulary import OPERATORS

    assert {operator for operator, *_ in SETS} == OPERATORS


@pytest.mark.parametrize(
    ("operator", "observed", "texts", "expected"),
    [
        ("eq", "DE", ["DE"], True),
        ("lt", "9", ["10"], False),  # a text column compares as text
        ("lt", 9, ["10"], True),
        ("eq", 1.5, ["1.5"], True),
        ("eq", True, ["true"], True),
        ("eq", True, ["yes"], None),
        ("isAnyOf", 3, ["1", "2", "3"], True),
        ("isNoneOf", 3, ["1", "2"], True),
        ("eq", 3, ["three"], None),
        ("neq", None, ["x"], None),
        ("eq", float("nan"), ["1"], None),
        ("gteq", date(2027, 1, 1), ["2027-01-01"], True),
        ("lt", datetime(2027, 1, 1), ["2027-01-01T00:00:01"], True),
        ("lt", datetime(2027, 1, 1), ["2027-01-01T00:00:01Z"], None),
        ("neq", datetime(2027, 1, 1), ["2027-01-01T00:00:00Z"], None),
    ],
)
def test_a_column_value_compares_by_the_columns_own_type(
    operator: str, observed: Any, texts: list[str], expected: bool | None
) -> None:
    assert operators.compare_scalar(operator, observed, texts) is expected
