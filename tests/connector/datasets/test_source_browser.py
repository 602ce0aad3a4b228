"""Choosing a file to register: what is listed, what is not, and no way out of the roots."""

from __future__ import annotations

from pathlib import Path

import pytest

from connector.datasets.source_browser import LISTED_MAX, SourceEntry, list_folder, list_roots
from connector.errors import PathRefused


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "data"
    (made / "2024").mkdir(parents=True)
    (made / "own").mkdir()
    for name in ("Patients 2024.csv", "b.parquet", "notes.txt", ".hidden.csv"):
        (made / name).write_bytes(b"12345")
    (tmp_path / "secret.csv").write_text("x")
    (made / "out.csv").symlink_to(tmp_path / "secret.csv")
    (made / "up").symlink_to(tmp_path)
    return made


def test_folders_and_files_of_known_kinds_are_listed(root: Path) -> None:
    found = list_folder(str(root), roots=[root], private=[root / "own"])
    assert [(one.name, one.folder, one.size, one.kind) for one in found.entries] == [
        ("2024", True, 0, "hive"),
        ("b.parquet", False, 5, "parquet"),
        ("Patients 2024.csv", False, 5, "csv"),
    ]
    assert (found.path, found.above, found.more) == (str(root), "", False)
    assert list_folder(str(root / "2024"), roots=[root], private=[]).above == str(root)
    assert [one.path for one in list_roots([root]).entries] == [str(root)]


@pytest.mark.parametrize("path", ["{root}/..", "{root}/up", "/etc", "{root}/own", "{root}/b.parquet/x", "{root}\0", ""])
def test_what_is_no_folder_of_data_is_refused(root: Path, path: str) -> None:
    with pytest.raises(PathRefused):
        list_folder(path.format(root=root), roots=[root], private=[root / "own"])


def test_a_file_is_refused_as_a_folder(root: Path) -> None:
    with pytest.raises(PathRefused):
        list_folder(str(root / "b.parquet"), roots=[root], private=[])


def test_a_large_folder_is_cut_and_says_so(tmp_path: Path) -> None:
    for number in range(LISTED_MAX + 1):
        (tmp_path / f"f{number:05}.csv").touch()
    found = list_folder(str(tmp_path), roots=[tmp_path], private=[])
    assert (len(found.entries), found.more, found.entries[0].name) == (LISTED_MAX, True, "f00000.csv")


@pytest.mark.parametrize(
    ("name", "suggested"),
    [("Patients 2024.csv", "patients_2024"), ("2024.csv", "data_2024"), ("Ärzte.csv", "rzte"), ("---", "data")],
)
def test_a_name_for_the_dataset_is_suggested(name: str, suggested: str) -> None:
    assert SourceEntry(name, name, False, 0, "csv").suggested == suggested
