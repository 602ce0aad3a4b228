"""A value is shown as the lower edge of its bin: exactly where its type counts exactly, else as the nearest number."""

from __future__ import annotations

import random
import struct
from collections import Counter
from collections.abc import Iterator
from decimal import ROUND_FLOOR, Decimal, localcontext
from fractions import Fraction

import pytest

from policies import columns
from policies.errors import ContractUndecided
from tests.support import gate

WIDTHS = {
    "TINYINT": ["3", "10", "128"],
    "USMALLINT": ["7", "1000"],
    "INTEGER": ["1000", "60000"],
    "BIGINT": ["10", "1000", "60000000000", "9223372036854775807", "9223372036854775808"],
    "UBIGINT": ["10", "4294967297", "18446744073709551616"],
    "HUGEINT": ["10", "1000000000000000000001"],
    "UHUGEINT": ["10"],
    "DECIMAL(4,1)": ["0.3", "2.5", "1000"],
    "DECIMAL(6,2)": ["0.05", "0.1", "0.2", "0.3", "2.5"],
    "DECIMAL(18,3)": ["0.007", "1000"],
    "DECIMAL(18,0)": ["7"],
    "DECIMAL(38,10)": ["0.1", "0.3", "1000000", "1000000000000000000000000000000"],
}
OF_BOTH = [(type_, width) for type_, widths in WIDTHS.items() for width in widths]


@pytest.fixture(autouse=True)
def digits() -> Iterator[None]:
    with localcontext(prec=200):
        yield


def edge(value: Decimal, width: str) -> Decimal:
    return (value / Decimal(width)).to_integral_value(ROUND_FLOOR) * Decimal(width)


def some(type_: str, width: str) -> list[Decimal]:
    """Values of a type: its ends, what is about its edges, and others."""
    chosen, (least, most), scale = random.Random(type_), columns.extent(type_), columns.decimal_scale(type_)
    step = max(1, int(Fraction(width) * 10**scale))
    edges = [step * chosen.randrange(least // step, most // step + 1) for _ in range(30)]
    near = [one + more for one in (0, *edges, *range(0, 9 * step, step)) for more in (-1, 0, 1)]
    found = {least, most, *near, *(chosen.randrange(least, most + 1) for _ in range(30))}
    return [Decimal(one).scaleb(-scale) if scale else Decimal(one) for one in sorted(found) if least <= one <= most]


def stored(type_: str, values: list[Decimal]) -> gate.Bench:
    bench = gate.Bench()
    bench.connection.execute(
        f"CREATE TABLE src AS SELECT unnest(range({len(values)})) AS id, unnest($1)::{type_} AS c",
        [[f"{value:f}" for value in values]],
    )
    return bench


def masked(type_: str, values: list[Decimal], width: str) -> list[str | None]:
    bench = stored(type_, values)
    duty = gate.mask("generalise", "c", argument=width)
    bench.add("clinic", "t", "src", gate.contract(gate.schema_of(bench.connection, "src"), duties=[duty]))
    return [text for (text,) in bench.ask("SELECT CAST(c AS VARCHAR) FROM t ORDER BY id")]


def grouped(type_: str, values: list[Decimal], width: str) -> dict[object, int]:
    bench = stored(type_, [value for value in values for _ in range(5)])
    wanted = (gate.atom("ds:minGroupSize", "gteq", "5"), gate.atom("ds:dimension/c", "eq", width))
    bench.add("clinic", "t", "src", gate.contract(gate.schema_of(bench.connection, "src"), *wanted))
    return dict(bench.ask("SELECT c, count(*) FROM t GROUP BY c"))


@pytest.mark.parametrize(("type_", "width"), OF_BOTH)
def test_a_mask_shows_the_exact_edge_or_none_that_does_not_fit(type_: str, width: str) -> None:
    values, (least, most), scale = some(type_, width), columns.extent(type_), columns.decimal_scale(type_)
    shown = masked(type_, values, width)
    edges = [edge(value, width) for value in values]
    wanted = [one if least <= one.scaleb(scale) <= most else None for one in edges]
    assert [None if one is None else Decimal(one) for one in shown] == wanted


@pytest.mark.parametrize(
    ("type_", "width"), [*OF_BOTH, ("INTEGER", "2.5"), ("BIGINT", "0.3"), ("DECIMAL(6,2)", "0.125")]
)
def test_a_grid_has_the_bins_of_the_mask(type_: str, width: str) -> None:
    """Those of whole numbers in steps of them are whole, others the nearest DOUBLE."""
    values = some(type_, width)[1:]  # the edge of the least number may be less than all numbers of its type
    whole = "." not in width and columns.family(type_) == columns.INTEGER
    edges = Counter(int(one) if whole else float(one) for one in (edge(value, width) for value in values))
    assert grouped(type_, values, width) == {one: 5 * count for one, count in edges.items()}


@pytest.mark.parametrize("width", ["0.1", "0.2", "0.3", "0.05", "0.25", "2.5", "7"])
@pytest.mark.parametrize("type_", ["DOUBLE", "FLOAT"])
def test_a_float_is_shown_as_the_edge_that_it_looks_like(type_: str, width: str) -> None:
    values = [Decimal(number).scaleb(-2) for number in range(-500, 2500)]
    nearest = float if type_ == "DOUBLE" else (lambda one: struct.unpack("f", struct.pack("f", one))[0])
    wanted = [nearest(edge(value, width)) for value in values]
    assert [nearest(float(one or "nan")) for one in masked(type_, values, width)] == wanted
    bins = grouped(type_, values, width)
    assert bins == {float(key): 5 * count for key, count in Counter(edge(value, width) for value in values).items()}


@pytest.mark.parametrize(
    ("type_", "width", "says"),
    [
        ("BIGINT", "2.5", "a bin width of at most 0 digits after the point"),
        ("DECIMAL(6,2)", "0.125", "a bin width of at most 2 digits after the point"),
        ("DECIMAL(38,20)", "0.12345678901234567891", "a bin width of at most 15 digits"),
        ("DOUBLE", "0", "a bin width above 0"),
    ],
)
def test_a_width_whose_edges_could_not_be_shown_is_refused(type_: str, width: str, says: str) -> None:
    with pytest.raises(ContractUndecided, match=says):
        gate.contract(gate.schema(c=type_), duties=[gate.mask("generalise", "c", argument=width)])
