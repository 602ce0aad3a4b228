"""Random versions of a random table, and whoever asks both and subtracts: of how few patients does he learn something?

Which groups he sees the gate itself says; how many patients make the difference of a figure is counted here, by hand.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import combinations

from policies.enforce.gate import GatedDataset, prepare_version_report
from tests.oracles.outcome import Outcome
from tests.support import gate
from tests.support.gate import atom
from tests.support.oracle import Row

K = 5
_TABLE = "pid INTEGER, ward VARCHAR, sex VARCHAR, days INTEGER, cost DOUBLE"
_DAYS, _COST = (None, 0, *range(1, 12), *range(1, 12)), (None, 0, *range(20, 60))

Patients = dict[int, list[Row]]  # the rows of each in one group
Figure = Callable[[Sequence[Row]], float]


def run(seeds: Iterable[int], outcome: Outcome) -> None:
    """Try the versions of these seeds."""
    for seed in seeds:
        changes, told, found = case(seed)
        tells = "tells of few" if told else "tells of few nowhere"
        outcome.count(f"{tells}, {'found' if found else 'nothing found'}")
        if told and not found:
            outcome.find(seed, f"{', '.join(changes)}; not found: {told[0]}")


def case(seed: int) -> tuple[Sequence[str], Sequence[str], bool]:
    """What happened between two versions, the figures that both show and of which too few patients make the difference,
    and whether that was found."""
    rng, bench = random.Random(seed), gate.Bench()
    dimensions = rng.choice([("ward",), ("ward", "sex"), ()])
    measures = rng.choice([("days",), ("days", "cost"), ()])
    old = [row for pid in range(rng.choice([12, 40, 80])) for row in _patient(rng, pid, rng.choice([1, 1, 1, 2, 3]))]
    changes = tuple(rng.choices([*_CHANGES], k=rng.randint(1, 3)))
    new = [dict(row) for row in old]
    for name in changes:
        new = _CHANGES[name](rng, new)
    for name, rows in (("old", old), ("new", new)):
        bench.connection.execute(f"CREATE TABLE {name} ({_TABLE})")
        bench.connection.executemany(f"INSERT INTO {name} VALUES (?, ?, ?, ?, ?)", [[*row.values()] for row in rows])
    contract = gate.contract(
        gate.schema_of(bench.connection, "new"),
        atom("ds:minGroupSize", "gteq", str(K)),
        atom("ds:entityKey", "eq", "pid"),
        *(atom(f"ds:dimension/{name}", "eq", "exact") for name in dimensions),
        *(atom(f"ds:measure/{name}", "eq", "0..1000") for name in measures),
    )
    before, after = (GatedDataset(("clinic", "t"), name, contract) for name in ("old", "new"))
    ((found,),) = bench.run(prepare_version_report(before, after, token=bench.token, mask_key=gate.KEY))
    sides = (_shown(old, dimensions, before, bench), _shown(new, dimensions, after, bench))
    told = [*_told(*sides, dimensions, measures)]
    bench.connection.close()
    return changes, told, bool(found)


def _patient(rng: random.Random, pid: int, rows: int) -> list[Row]:
    def row() -> Row:
        facts = {
            "ward": rng.choice("AB"),
            "sex": rng.choice("mf"),
            "days": rng.choice(_DAYS),
            "cost": rng.choice(_COST),
        }
        return {"pid": pid, **facts}

    return [row() for _ in range(rows)]


def _some(rng: random.Random, rows: list[Row]) -> set[int]:
    """One patient, a few, or as many as a group must have."""
    patients = sorted({row["pid"] for row in rows})
    return set(rng.sample(patients, min(rng.choice([1, 1, 2, 4, 5, 8, 24, 24]), len(patients) - 1)))


def _one(rng: random.Random) -> list[str]:
    return [rng.choice(["days", "cost"])]


def _with(rows: list[Row], whose: set[int] | None, columns: Sequence[str], by: int | None) -> list[Row]:
    """More, or nothing, in columns of these patients, or of all; what is not known stays so."""
    for row in rows:
        if whose is None or row["pid"] in whose:
            row |= {name: by and row[name] + by for name in columns if row[name] is not None}
    return rows


def _gone(rng: random.Random, rows: list[Row]) -> list[Row]:
    gone = _some(rng, rows)
    return [row for row in rows if row["pid"] not in gone]


def _come(rng: random.Random, rows: list[Row]) -> list[Row]:
    first = max(row["pid"] for row in rows) + 1
    return rows + [row for pid in range(len(_some(rng, rows))) for row in _patient(rng, first + pid, 1)]


def _moved(rng: random.Random, rows: list[Row]) -> list[Row]:
    moved, (column, place) = _some(rng, rows), rng.choice([("ward", "A"), ("ward", "B"), ("sex", "m"), ("sex", "f")])
    return [row | {column: place} if row["pid"] in moved else row for row in rows]


def _exchanged(rng: random.Random, rows: list[Row]) -> list[Row]:
    """Half of the patients go to the other ward: those of both wards together are the same."""
    return [row | {"ward": {"A": "B", "B": "A"}.get(row["ward"], "A")} if row["pid"] % 2 else row for row in rows]


def _again(rng: random.Random, rows: list[Row]) -> list[Row]:
    return rows + [row for pid in _some(rng, rows) for row in _patient(rng, pid, 1)]


def _renamed(rng: random.Random, rows: list[Row]) -> list[Row]:
    return [row | {"ward": row["ward"].replace("A", "a")} for row in rows]


def _split(rng: random.Random, rows: list[Row]) -> list[Row]:
    return [row | {"ward": "C"} if row["ward"] == "A" and row["pid"] % 2 else row for row in rows]


_CHANGES: dict[str, Callable[[random.Random, list[Row]], list[Row]]] = {
    "more for all": lambda rng, rows: _with(rows, None, _one(rng), 1),
    "more for some": lambda rng, rows: _with(rows, _some(rng, rows), _one(rng), rng.choice([1, 17])),
    "more of both for some": lambda rng, rows: _with(rows, _some(rng, rows), ["days", "cost"], 2),
    "not known of some": lambda rng, rows: _with(rows, _some(rng, rows), _one(rng), None),
    "some gone": _gone,
    "some come": _come,
    "some moved": _moved,
    "half exchanged": _exchanged,
    "some again": _again,
    "a ward renamed": _renamed,
    "a ward split": _split,
}  # fmt: skip


def _shown(rows: list[Row], dimensions: tuple[str, ...], version: GatedDataset, bench: gate.Bench) -> list[Row]:
    """The rows of the cells that the gate shows of a version."""
    asking, among = gate.Bench(bench.connection), "".join(f"{name}, " for name in dimensions)
    asking.add(*version.name, version.relation, version.contract)
    grouped = f"GROUP BY {among[:-2]}" if dimensions else ""
    cells = {row[:-1] for row in asking.ask(f"SELECT {among}count(*) AS n FROM t {grouped}")}
    return [row for row in rows if tuple(row[name] for name in dimensions) in cells]


def _told(old: list[Row], new: list[Row], dimensions: tuple[str, ...], measures: tuple[str, ...]) -> Iterator[str]:
    for kind in {dimensions, *((one,) for one in dimensions), ()}:
        before, after = (_groups(rows, kind) for rows in (old, new))
        for group in before.keys() & after.keys():
            patients = before[group].keys() | after[group].keys()
            for name, figure in _figures(measures).items():
                differ = sum(
                    figure(before[group].get(one, [])) != figure(after[group].get(one, [])) for one in patients
                )
                if 0 < differ < K:
                    yield f"{name} of {group} by {differ} patients"


def _groups(rows: list[Row], kind: tuple[str, ...]) -> dict[tuple[str | None, ...], Patients]:
    found: dict[tuple[str | None, ...], Patients] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        found[tuple(row[name] for name in kind)][row["pid"]].append(row)
    return found


def _figures(measures: tuple[str, ...]) -> dict[str, Figure]:
    """What a question may ask of a group, and what it may subtract; how much each patient adds to it."""
    figures: dict[str, Figure] = {"rows": len}
    for name in measures:
        figures[f"rows with {name}"] = lambda rows, name=name: sum(row[name] is not None for row in rows)
        figures[f"sum of {name}"] = lambda rows, name=name: sum(row[name] or 0 for row in rows)
    less = {
        f"{one} less {other}": lambda rows, one=one, other=other: figures[one](rows) - figures[other](rows)
        for one, other in combinations(figures, 2)
        if one.partition(" ")[0] == other.partition(" ")[0]  # rows less rows, and sums less sums
    }
    return figures | less
