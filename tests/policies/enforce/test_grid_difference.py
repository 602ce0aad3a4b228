"""The difference of two versions under one grid: what reveals few units is found, and honest updates pass."""

from __future__ import annotations

import pytest

from policies.enforce.gate import GatedDataset, prepare_version_report
from tests.support import gate
from tests.support.gate import atom

GROUP, PATIENT, WARD = (
    atom("ds:minGroupSize", "gteq", "10"),
    atom("ds:entityKey", "eq", "pid"),
    atom("ds:dimension/ward", "eq", "exact"),
)
DAYS, COST, FLAG = (
    atom("ds:measure/days", "eq", "0..1000"),
    atom("ds:measure/cost", "eq", "0..100000"),
    atom("ds:measure/flag", "eq", "0..1"),
)
GROSS, NET = atom("ds:measure/gross", "eq", "0..100000"), atom("ds:measure/net", "eq", "0..100000")
PRICES, PRICED = (GROUP, PATIENT, WARD, GROSS, NET), (GROUP, WARD, GROSS, NET)
BOTH, ONE = (GROUP, PATIENT, WARD, DAYS, COST), (GROUP, PATIENT, WARD, COST)
ROWS, COUNTS, TOTALS = (GROUP, WARD, DAYS, COST), (GROUP, PATIENT, WARD), (GROUP, PATIENT, DAYS, COST)
FLAGS = (GROUP, PATIENT, WARD, FLAG)
LONGER = "i % 7 + 1"


def v(
    pid: str = "i", days: str = "i % 7", cost: str = "1000 + i * 13", flag: str = "i % 2", rows: str = "range(100)"
) -> str:
    """A version: a row of a patient for each i."""
    return (
        f"SELECT {pid} AS pid, 'A' AS ward, ({days})::INTEGER AS days, ({cost})::DOUBLE AS cost, "
        f"({flag})::INTEGER AS flag FROM {rows} r(i)"
    )


def prices(more: str, discount: str = "0", rows: str = "range(100)") -> str:
    """A version with two measures in cents, of which no DOUBLE has all."""
    return (
        f"SELECT i AS pid, 'A' AS ward, (1000 + i * 13.17 + {more})::DECIMAL(18, 2) AS gross, "
        f"(900 + i * 11.31 + {more} - {discount})::DECIMAL(18, 2) AS net FROM {rows} r(i)"
    )


def wards(ward: str, cost: str = "1000 + i * 13", rows: str = "range(100)", pid: str = "i") -> str:
    """A version whose patients lie in these wards."""
    return v(pid, cost=cost, rows=rows).replace("'A' AS ward", f"({ward})::VARCHAR AS ward")


def with_sex(version: str) -> str:
    return f"SELECT *, CASE WHEN pid % 2 = 0 THEN 'm' ELSE 'f' END AS sex FROM ({version})"


def in_wards(version: str, first: int) -> str:
    return f"SELECT * REPLACE (CASE WHEN pid < {first} THEN 'A' ELSE 'B' END AS ward) FROM ({version})"


SEX = atom("ds:dimension/sex", "eq", "exact")
FIRST = "CASE WHEN i < {} THEN 'A' ELSE 'B' END"
DEAR = "1000 + i * 13 + CASE WHEN i = 40 THEN 4000 ELSE 0 END"
BUT_40 = "(FROM range(100) t(i) WHERE i <> 40)"
DECADES = "((40 + i % 30 + {}) // 10)"
NEW_COST = "CASE WHEN i = 100 THEN 54321 ELSE 1000 + i * 13 END"
SOME_COST = "CASE WHEN i > 9 AND i <> 100 THEN 1000 + i * 13 END"
ANEW = "(i * 7919 + 13) % 100003"  # other numbers for all
THIRDS = "SELECT pid, ward, days, cost / 3 AS cost, flag FROM ({}) JOIN range(3) ON true ORDER BY hash(pid * {} + cost)"

TWO = v(cost="1000 + i * 13 + CASE WHEN i IN (42, 43) THEN 40000 ELSE 0 END")
OTHERS = v(rows="range(200, {})").replace("'A'", "'B'")

TELLING: dict[str, tuple[tuple[gate.Constraint, ...], str, str]] = {
    "one patient more": (ONE, v(), v(rows="range(101)")),
    "everybody a day longer, and one patient more": (BOTH, v(), v(days=LONGER, cost=NEW_COST, rows="range(101)")),
    "everybody a day longer, and one row more": (ROWS, v(), v(days=LONGER, cost=NEW_COST, rows="range(101)")),
    "everybody a day longer, and one patient gone": (BOTH, v(), v(days=LONGER, rows="range(99)")),
    "everybody a day longer, and one patient's cost": (
        BOTH, v(), v(days=LONGER, cost="1000 + i * 13 + CASE WHEN i = 42 THEN 40000 ELSE 0 END"),
    ),
    "everybody a day longer, and one patient's cost, without groups": (
        TOTALS, v(), v(days=LONGER, cost="1000 + i * 13 + CASE WHEN i = 42 THEN 40000 ELSE 0 END"),
    ),
    "everybody's cost, and one patient more": (COUNTS, v(), v(cost="i", rows="range(101)")),
    "ten patients by little, and one by much": (
        ONE, v(), v(cost="1000 + i * 13 + CASE WHEN i = 42 THEN 40000 WHEN i < 10 THEN 1 ELSE 0 END"),
    ),
    "twelve patients more, of whom two have costs": (
        ONE, v(), v(cost="CASE WHEN i < 102 THEN 1000 + i * 13 ELSE 0 END", rows="range(112)"),
    ),
    "twelve rows more, of which two have costs": (
        ROWS, v(), v(cost="CASE WHEN i < 102 THEN 1000 + i * 13 ELSE 0 END", rows="range(112)"),
    ),
    "twelve patients more, of whom one has no known cost": (
        ONE, v(cost=SOME_COST), v(cost=SOME_COST, rows="range(112)"),
    ),
    "twelve patients get a row more, and one is new": (
        COUNTS, v(), f"{v(rows='range(101)')} UNION ALL {v(rows='range(12)')}",
    ),
    "one flag, under other ids": (FLAGS, v(), v(pid=ANEW, flag="i % 2 = 0 OR i = 1")),
    "one patient more, under other ids": (ONE, v(), v(pid=ANEW, cost=NEW_COST, rows="range(101)")),
    "one patient of twelve rows more, under other ids": (
        ONE, v(), f"{v(pid=ANEW)} UNION ALL {v(pid='7', cost='99', rows='range(12)')}",
    ),
    "everybody a day longer, and one patient more, under other ids": (
        BOTH, v(), v(pid=ANEW, days=LONGER, cost=NEW_COST, rows="range(101)"),
    ),
    "one patient's cost, where ids are the places of rows": (
        ONE, v(), v(pid="99 - i", cost="1000 + i * 13 + CASE WHEN i = 42 THEN 40000 ELSE 0 END"),
    ),
    "two patients' costs, where sums are added in another order": (ONE, THIRDS.format(v(), 1), THIRDS.format(TWO, 7)),
    "all prices, and one patient's discount": (
        PRICES, prices("0"), prices("1.10", "CASE WHEN i = 5 THEN 80 ELSE 0 END"),
    ),
    "a ward gets another name, and one patient more": (ONE, wards("'A'"), wards("'a'", NEW_COST, "range(101)")),
    "a ward gets another name, and one patient more, under other ids": (
        ONE, wards("'A'"), wards("'a'", NEW_COST, "range(101)", pid=ANEW),
    ),
    "a ward becomes two, and one patient more": (ONE, wards("'A'"), wards(FIRST.format(50), NEW_COST, "range(101)")),
    "13 go to another ward, of whom one has left": (ONE, wards(FIRST.format(50)), wards(FIRST.format(37), rows=BUT_40)),
    "12 go to another ward, and one's cost": (ONE, wards(FIRST.format(50)), wards(FIRST.format(38), DEAR)),
    "12 rows go to another ward, and one's cost": (
        (GROUP, WARD, COST), wards(FIRST.format(50)), wards(FIRST.format(38), DEAR),
    ),
    "all are a year older, and one has left": (
        ONE, wards(DECADES.format(0), rows="range(1000)"),
        wards(DECADES.format(1), rows="(FROM range(1000) t(i) WHERE i <> 29)"),
    ),
    "a ward gets another name, and one man more": (
        (*ONE, SEX), with_sex(wards("CASE WHEN i % 4 < 2 THEN 'A' ELSE 'B' END")),
        with_sex(wards("CASE WHEN i % 4 < 2 THEN 'a' ELSE 'B' END", rows="range(101)")),
    ),
    "all prices, and one row's discount": (
        PRICED, prices("0"), prices("1.10", "CASE WHEN i = 5 THEN 80 ELSE 0 END"),
    ),
    "all prices, and one patient's discount, under other ids": (
        PRICES, prices("0"), prices("1.10", "CASE WHEN i = 5 THEN 80 ELSE 0 END").replace("i AS pid", f"{ANEW} AS pid"),
    ),
    "all prices, and one row's discount in two wards": (
        PRICED, in_wards(prices("0"), 50), in_wards(prices("1.10", "CASE WHEN i = 40 THEN 80 ELSE 0 END"), 38),
    ),
    "one patient more, in the group of unknown wards": (
        ONE,
        v().replace("'A'", "NULL::VARCHAR"),
        v(rows="range(101)").replace("'A'", "NULL::VARCHAR"),
    ),
}  # fmt: skip

HONEST: dict[str, tuple[tuple[gate.Constraint, ...], str, str]] = {
    "nothing": (BOTH, v(), v()),
    "the same rows under other ids": (BOTH, v(), v(pid=ANEW)),
    "the same sums, added in another order": (ONE, THIRDS.format(v(), 1), THIRDS.format(v(), 7)),
    "everybody a day longer": (BOTH, v(), v(days=LONGER)),
    "ten patients with other costs": (ONE, v(), v(cost="1000 + i * 13 + CASE WHEN i < 10 THEN 5 ELSE 0 END")),
    "all prices by as much": (PRICES, prices("0", rows="range(20)"), prices("0.30", rows="range(20)")),
    "a ward gets another name": (ONE, wards("'A'"), wards("'a'")),
    "a ward gets another name, under other ids": (ONE, wards("'A'"), wards("'a'", pid=ANEW)),
    "12 go to another ward": (ONE, wards(FIRST.format(50)), wards(FIRST.format(38))),
    "12 rows go to another ward": ((GROUP, WARD, COST), wards(FIRST.format(50)), wards(FIRST.format(38))),
    "all are a year older": (
        ONE, wards(DECADES.format(0), rows="range(1000)"), wards(DECADES.format(1), rows="range(1000)"),
    ),
    "all prices of rows by as much": (PRICED, prices("0"), prices("0.30")),
    "all prices by as much, under other ids": (
        PRICES, prices("0"), prices("0.30").replace("i AS pid", f"{ANEW} AS pid"),
    ),
    "30 rows go and 33 come, with two prices": (PRICED, prices("0"), prices("0", rows="range(30, 133)")),
    "30 rows go and 33 come, and all prices": (PRICED, prices("0"), prices("7.77", rows="range(30, 133)")),
    "30 leave and 33 come, and all are a day longer": (BOTH, v(), v(days=LONGER, rows="range(30, 133)")),
    "12 leave and 13 come, of a table that is counted": (COUNTS, v(), v(rows="range(12, 113)")),
    "30 rows go and 33 come": ((GROUP, WARD, COST), v(), v(rows="range(30, 133)")),
    "24 leave and 26 come, half of them with the flag": (FLAGS, v(), v(rows="range(24, 126)")),
    "twelve patients get a row more, one is new, and patients are not counted": (
        COUNTS, f"{v()} UNION ALL {v(rows='range(3)')}",
        f"{v(rows='range(101)')} UNION ALL {v(rows='range(3)')} UNION ALL {v(rows='range(3, 15)')}",
    ),
    "one patient more in a group that is not shown": (
        ONE, f"{v()} UNION ALL {OTHERS.format(203)}",
        f"{v()} UNION ALL {OTHERS.format(204)}",
    ),
}  # fmt: skip


def few(constraints: tuple[gate.Constraint, ...], old: str, new: str) -> int:
    """Of how many groups the difference tells of few."""
    bench = gate.Bench()
    for name, rows in (("old", old), ("new", new)):
        bench.connection.execute(f"CREATE TABLE {name} AS {rows}")
    contract = gate.contract(gate.schema_of(bench.connection, "new"), *constraints)
    before, after = (GatedDataset(("clinic", "t"), name, contract) for name in ("old", "new"))
    ((found,),) = bench.run(prepare_version_report(before, after, token=bench.token, mask_key=gate.KEY))
    bench.connection.close()
    return int(found)


@pytest.mark.parametrize("change", TELLING)
def test_what_tells_of_few_is_found(change: str) -> None:
    assert few(*TELLING[change]) == 1


@pytest.mark.parametrize("change", HONEST)
def test_what_tells_of_nobody_passes(change: str) -> None:
    assert few(*HONEST[change]) == 0
