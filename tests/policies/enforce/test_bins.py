"""A value is shown as the lower edge of its bin: exactly for exact types, otherwise as the nearest number."""

from __future__ import annotations

import random
import struct
from collections import Counter
from collections.abc import Iterator
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal, localcontext
from fractions import Fraction

import pytest

from policies.contracts import columns
from policies.contracts.compile import compile_contracts
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
    chosen, (least, most), scale = random.Random(type_), columns.value_range(type_), columns.decimal_scale(type_)
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
    values, (least, most), scale = some(type_, width), columns.value_range(type_), columns.decimal_scale(type_)
    shown = masked(type_, values, width)
    edges = [edge(value, width) for value in values]
    wanted = [one if least <= one.scaleb(scale) <= most else None for one in edges]
    assert [None if one is None else Decimal(one) for one in shown] == wanted


@pytest.mark.parametrize(
    ("type_", "width"), [*OF_BOTH, ("INTEGER", "2.5"), ("BIGINT", "0.3"), ("DECIMAL(6,2)", "0.125")]
)
def test_a_grid_has_the_bins_of_the_mask(type_: str, width: str) -> None:
    """A bin that begins below all numbers of the type is named by the least of these."""
    values = some(type_, width)
    edges = Counter(edge(value, width) for value in values)
    found = {Decimal(str(key)): count for key, count in grouped(type_, values, width).items()}
    low = {key: max(key, min(found)) for key in edges}
    assert found == {low[key]: 5 * count for key, count in edges.items()}
    assert [key for key in edges if key != low[key]] in ([], [min(edges)])


@pytest.mark.parametrize(
    ("type_", "values", "width"),
    [
        ("DECIMAL(18,0)", ["100000000000000000", "100000000000000010", "100000000000000020"], "10"),
        ("DECIMAL(18,4)", ["99999999999999.0000", "99999999999999.0020", "99999999999999.0040"], "0.002"),
        ("BIGINT", ["9007199254740992", "9007199254740994.5"], "2.5"),
    ],
)
def test_bins_whose_edges_are_one_double_are_several(type_: str, values: list[str], width: str) -> None:
    numbers = [Decimal(value).to_integral_value(ROUND_CEILING) if type_ == "BIGINT" else Decimal(value)
               for value in values]  # fmt: skip
    assert grouped(type_, numbers, width) == {edge(number, width): 5 for number in numbers}


@pytest.mark.parametrize(
    ("type_", "lowest"),
    [("BIGINT", -(2**63)), ("HUGEINT", -(2**127)), ("DECIMAL(4,1)", Decimal("-999.9"))],
)
def test_the_lowest_bin_is_not_that_of_unknown_values(type_: str, lowest: Decimal) -> None:
    bench = gate.Bench()
    bench.connection.execute(f"CREATE TABLE src AS SELECT unnest($1)::{type_} AS c", [[None, f"{lowest}"] * 5])
    wanted = (gate.atom("ds:minGroupSize", "gteq", "5"), gate.atom("ds:dimension/c", "eq", "10"))
    bench.add("clinic", "t", "src", gate.contract(gate.schema_of(bench.connection, "src"), *wanted))
    assert dict(bench.ask("SELECT c, count(*) FROM t GROUP BY c")) == {None: 5, lowest: 5}
    assert bench.ask(f"SELECT count(*) FROM t WHERE c = {lowest}") == [(5,)]


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
    ("type_", "values", "width"),
    [
        ("DOUBLE", ["1.7e308", "-1.7e308", "1e308"], "0.1"),
        ("DOUBLE", ["1.7e308", "-1.7e308"], "10.939"),
        ("DOUBLE", ["5.093391774827467e31", "-5.093391774827467e31"], "92.928"),
        ("FLOAT", ["3.4e38", "-3.4e38"], "0.1"),
    ],
)
def test_a_float_beyond_all_edges_is_its_own_edge_or_next_to_it(type_: str, values: list[str], width: str) -> None:
    bench = gate.Bench()
    bench.connection.execute(f"CREATE TABLE src AS SELECT unnest($1)::{type_} AS c, c AS same", [values])
    duty = gate.mask("generalise", "c", argument=width)
    bench.add("clinic", "t", "src", gate.contract(gate.schema_of(bench.connection, "src"), duties=[duty]))
    near = "c <= same AND c >= same - abs(same) * 1e-15"
    assert bench.ask(f"SELECT count(*) FROM t WHERE {near}") == [(len(values),)]


@pytest.mark.parametrize("width", ["0.1", "92.928", "7"])
def test_a_float_is_never_shown_above_itself(width: str) -> None:
    bench, chosen = gate.Bench(), random.Random(width)
    values = [chosen.uniform(-1, 1) * float(width) * 2.0 ** chosen.uniform(45, 60) for _ in range(3000)]
    bench.connection.execute("CREATE TABLE src AS SELECT unnest($1)::DOUBLE AS c, c AS same", [values])
    duty = gate.mask("generalise", "c", argument=width)
    bench.add("clinic", "t", "src", gate.contract(gate.schema_of(bench.connection, "src"), duties=[duty]))
    wrong = f"c > same OR c < same - 2 * {width} - abs(same) * 1e-15 OR c IS NULL"
    assert bench.ask(f"SELECT count(*) FROM t WHERE {wrong}") == [(0,)]


@pytest.mark.parametrize(
    ("type_", "width", "says"),
    [
        ("BIGINT", "2.5", "a bin width of at most 0 digits after the point"),
        ("DECIMAL(6,2)", "0.125", "a bin width of at most 2 digits after the point"),
        ("DECIMAL(38,20)", "0.12345678901234567891", "a bin width of at most 15 digits"),
        ("DOUBLE", "0", "a bin width above 0"),
    ],
)
def test_new_terms_have_no_width_whose_edges_could_not_be_shown(type_: str, width: str, says: str) -> None:
    policy = gate.agreement(duties=[gate.mask("generalise", "c", argument=width)])
    with pytest.raises(ContractUndecided, match=says):
        compile_contracts(policy, gate.schema(c=type_), new=True)


@pytest.mark.parametrize(
    ("type_", "width", "value", "shown"),
    [
        ("DECIMAL(6,2)", "0.125", "1.30", "1.25"),
        ("DECIMAL(6,2)", "0.125", "1.38", "1.38"),  # of 1.375, no number of the type is nearer
        ("DECIMAL(6,2)", "0.125", "-1.37", "-1.38"),
        ("DECIMAL(38,20)", "0.12345678901234567891", "0.2", "0.12345678901234568000"),
    ],
)
def test_signed_terms_are_kept_with_edges_as_the_type_shows_them(
    type_: str, width: str, value: str, shown: str
) -> None:
    assert masked(type_, [Decimal(value)], width) == [shown]


def test_a_signed_width_never_shows_more_than_the_value() -> None:
    values = [Decimal(number).scaleb(-2) for number in range(-500, 500)]
    shown = [Decimal(text or "nan") for text in masked("DECIMAL(6,2)", values, "0.125")]
    assert all(one <= value < one + Decimal("0.13") for one, value in zip(shown, values, strict=True))


@pytest.mark.parametrize("type_", ["BIGINT", "DECIMAL(38,20)"])
def test_signed_terms_keep_a_grid_of_more_digits_than_a_float_has(type_: str) -> None:
    values = [Decimal(1), Decimal(2)]
    nearest = Decimal(str(float("0.12345678901234567891")))
    assert grouped(type_, values, "0.12345678901234567891") == {edge(one, str(nearest)): 5 for one in values}
