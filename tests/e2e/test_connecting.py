"""The programs that the console shows to a model builder, run as they stand there in a running data space."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import Running
from tests.support import programs


@pytest.mark.parametrize(
    ("dataset", "client", "http"),
    [("secret_rows", "63", "63"), ("secrets", "[[60]]", "1")],
    ids=["rows", "groups only"],
)
def test_the_programs_of_the_console_read_what_was_agreed(
    running: Running, dataset: str, client: str, http: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    forge = running.space.members["forge"]
    transfer = running.story.agreed[f"north/{dataset}"].transfer_id
    monkeypatch.setenv("HANSE_TOKEN", forge.token)
    folder = tmp_path / "installed"
    line = programs.install_line(forge.management_port, forge.token, transfer)
    pip = [sys.executable, "-m", *shlex.split(line), "--quiet", "--no-deps", "--target", str(folder)]
    subprocess.run(pip, check=True)  # its dependencies are here, and the packages of the test run are not replaced
    assert (folder / "hanse" / "cli" / "__init__.py").is_file()
    found = programs.shown(forge.management_port, forge.token, transfer)
    assert list(found) == ["Hanse's client", "Arrow over HTTP"]  # this owner does not speak Flight
    assert client in programs.printed(found["Hanse's client"]).split()
    assert programs.printed(found["Arrow over HTTP"]).split() == [http]
