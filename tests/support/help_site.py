"""Builds the help site for a test, as `make help-site` does, into a folder of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def build(folder: Path, root: Path = ROOT) -> Path:
    """Build the site of a checkout strictly and return its folder. Raises: AssertionError with the output of MkDocs."""
    environment = {**os.environ, "PYTHONPATH": f"docs/site{os.pathsep}.", "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    ran = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert ran.returncode == 0, ran.stderr
    return folder
