"""The aims of the data plane, and what a run has reached: medians of ratios within a round."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from benchmarks.stream.clients import Took


class Way(Protocol):
    """What the report needs of a way."""

    nbytes: int
    took: list[Took]
    server_cpu: list[float]


Found = Mapping[str, Way]
LOCAL = ("local iter", "local scanner", "local whole", "local duckdb")
FILTERED = ("local scanner, filtered", "local whole, filtered", "local duckdb, filtered")
REMOTE = ("http ranges to table", "http download to table")
_PLAIN = ("urllib3 + open_stream", "requests + open_stream")


def faster(ours: str, theirs: Sequence[str]) -> Callable[[Found], float | None]:
    """How often ours fits into the best of theirs, by the round."""

    def ratio(found: Found) -> float | None:
        known = [found[name] for name in theirs if name in found]
        if ours not in found or not known:
            return None
        best = min(known, key=lambda way: statistics.median(took.seconds for took in way.took))
        pairs = zip(best.took, found[ours].took, strict=True)
        return statistics.median(other.seconds / mine.seconds for other, mine in pairs)

    return ratio


def dearer(side: str) -> Callable[[Found], float | None]:
    """Processor time against the raw socket's; None where that is under the clock's tick, and says nothing."""

    def ratio(found: Found) -> float | None:
        ours, raw = found.get("hanse, in memory"), found.get("raw socket")
        if ours is None or raw is None:
            return None
        if side == "server":
            mine, least = statistics.median(ours.server_cpu), statistics.median(raw.server_cpu)
        else:
            mine, least = statistics.median(t.cpu for t in ours.took), statistics.median(t.cpu for t in raw.took)
        return mine / least if least > 0 else None

    return ratio


_EVERY = {"lineitem": 1.0, "floats": 1.0, "images": 1.0}


def _same(aim: float) -> dict[str, float]:
    return dict.fromkeys(_EVERY, aim)


_LITTLE = {"lineitem": 1.8, "floats": 1.3, "images": 1.3}
AIMS: list[tuple[str, dict[str, float], Callable[[Found], float | None], bool]] = [
    ("in memory / raw socket", _same(0.85), faster("hanse, in memory", ["raw socket"]), True),
    ("prepared / raw socket", _same(0.75), faster("hanse, prepared", ["raw socket"]), True),
    ("server CPU in memory / raw sender", _same(1.3), dearer("server"), False),
    ("client CPU in memory / raw receiver", _same(1.6), dearer("client"), False),
    ("in memory / flight", _LITTLE, faster("hanse, in memory", ["flight"]), True),
    ("hanse flight / flight", _same(0.5), faster("hanse, flight", ["flight"]), True),
    ("TLS / raw TLS", _same(0.8), faster("hanse, TLS", ["raw TLS socket"]), True),
    ("TLS / flight TLS", _same(1.4), faster("hanse, TLS", ["flight TLS"]), True),
    ("urllib3 / raw socket", _same(0.6), faster(_PLAIN[0], ["raw socket"]), True),
    ("requests / raw socket", _same(0.6), faster(_PLAIN[1], ["raw socket"]), True),
    ("parquet / best local reader", _same(0.75), faster("hanse, parquet", LOCAL), True),
    ("filtered / best local reader", _same(0.9), faster("hanse, filtered", FILTERED), True),
    ("to table / best of ranges, download", _same(1.2), faster("hanse to table", REMOTE), True),
    (
        "the same, filtered", _same(4.0),
        faster("hanse to table, filtered", [f"{name}, filtered" for name in REMOTE]), True,
    ),
    ("prepared / best local reader", {"lineitem": 2.5, "floats": 2.5}, faster("hanse, prepared", LOCAL), True),
    ("governance on / off", _same(0.97), faster("hanse, parquet", ["bare"]), True),
]  # fmt: skip
# What a bare socket reaches of these in the same run: where that is less than the aim, nobody can.
LIMITS: dict[str, Callable[[Found], float | None]] = {
    "in memory / flight": faster("raw socket", ["flight"]),
    "TLS / flight TLS": faster("raw TLS socket", ["flight TLS"]),
    "parquet / best local reader": faster("raw socket", LOCAL),
    "prepared / best local reader": faster("raw socket", LOCAL),
}
STOPS = [
    ("stop after disconnect, ms", "disconnect_ms", 50.0),
    ("resume at half: ms over 1.5x or 20 more", "resume_over_ms", 0.0),
    ("batches after a revocation", "revoked_batches", 1.0),
    ("until the reader is told, ms", "revoked_ms", 1000.0),
    ("stalled: memory grows, MB", "stalled_grows_mb", 4.0),
    ("stalled: released ahead, MB", "stalled_ahead_mb", 16.0),
    ("stalled: memory above idle, MB", "stalled_mb", 150.0),
]


def table(found: Mapping[str, Found], stopped: Mapping[str, Any]) -> None:
    """Print every aim with what was reached."""
    print(f"\n{'aim':40}" + "".join(f"{name:>24}" for name in found))
    for name, wanted, ratio, more in AIMS:
        cells = []
        for data, ways in found.items():
            reached, aim = ratio(ways), wanted.get(data)
            if reached is None or aim is None:
                cells.append(f"{'-':>24}")
                continue
            met = reached >= aim if more else reached <= aim
            cells.append(
                f"{reached:10.2f} {'of' if more else 'at most'} {aim:.2f} {'met' if met else 'MISSED'}".rjust(24)
            )
        print(f"{name:40}" + "".join(cells))
    for name, wanted, _, _ in AIMS:
        for data, ways in found.items():
            most = LIMITS[name](ways) if name in LIMITS else None
            if most is not None and data in wanted and most < wanted[data]:
                print(
                    f"{name}, {data}: a raw socket by itself has {most:.2f}, so {wanted[data]:.2f} is out of reach here"
                )
    for name, key, most in STOPS:
        if key in stopped:
            print(f"{name:40}{stopped[key]:10.1f} at most {most:g} {'met' if stopped[key] <= most else 'MISSED'}")
