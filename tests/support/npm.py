"""Programs from npm, installed once into var/ of the checkout."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

_FOLDER = Path(__file__).parents[2] / "var" / "npm"
_INSTALL_SECONDS = 120


def installed(package: str, version: str) -> Path:
    """The folder with `node_modules` of a package. The test is skipped where it cannot be had."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("needs Node.js and npm")
    folder = _FOLDER / f"{package}-{version}"
    if not (folder / "done").exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = [npm, "install", "--prefix", str(folder), "--no-audit", "--no-fund", "--ignore-scripts"]
        try:
            subprocess.run(
                [*command, f"{package}@{version}"], check=True, capture_output=True, timeout=_INSTALL_SECONDS
            )
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
            pytest.skip(f"npm cannot install {package} {version} here")
        (folder / "done").touch()
    return folder
