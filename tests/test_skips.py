"""A run says at its end which tests it skipped and why, with one process or several."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("processes", ["0", "2"])
def test_the_end_of_a_run_says_each_skip_with_its_reason(tmp_path: Path, processes: str) -> None:
    skipped = tmp_path / "test_skipped.py"
    skipped.write_text("import pytest\n\ndef test_one() -> None:\n    pytest.skip('needs a tape drive')\n")
    command = [sys.executable, "-m", "pytest", "-c", ROOT / "pyproject.toml", "-n", processes, skipped]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    said = ran.stdout.splitlines()
    assert [line for line in said if line.startswith("SKIPPED") and line.endswith(": needs a tape drive")], ran.stdout
    assert said[-1].startswith("1 skipped")
