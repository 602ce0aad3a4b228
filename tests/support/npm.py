"""Programs from npm, installed once into var/ of the checkout."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

_FOLDER = Path(__file__).parents[2] / "var" / "npm"
_INSTALL_SECONDS = 120


def installed(package: str, version: str) -> Path:
    """The folder with `node_modules` of a package. The test is skipped where it cannot be had.

    Test processes take turns: two installations into one folder spoil each other.
    """
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("needs Node.js and npm")
    _FOLDER.mkdir(parents=True, exist_ok=True)
    folder = _FOLDER / f"{package}-{version}"
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            _install(npm, f"{package}@{version}", folder)
    return folder


def _install(npm: str, package: str, folder: Path) -> None:
    """Install into a folder beside it, and give it its name only once it is complete."""
    with tempfile.TemporaryDirectory(dir=_FOLDER, ignore_cleanup_errors=True) as made:
        command = [npm, "install", "--prefix", made, "--no-audit", "--no-fund", "--ignore-scripts", package]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=_INSTALL_SECONDS)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            pytest.skip(f"npm cannot install {package} here: {(error.stderr or b'').decode()[-400:]}")
        Path(made).rename(folder)
