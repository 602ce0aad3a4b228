"""What `Runner.java` gives the conformance kit, on the version that Maven has already fetched here."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.tck import run


def test_the_store_of_the_launcher_session_has_the_monitor_that_kits_since_rc7_read(tmp_path: Path) -> None:
    if not all(map(shutil.which, run.PACKAGES)):
        pytest.skip("needs a JDK and Maven; `make tck` installs them")
    try:
        _, classes = run.class_path(tmp_path, "-o")
    except run.NotReachable:
        pytest.skip("needs the conformance kit; `make tck` fetches it")
    assert run.check_runner(classes, tmp_path) == "1 passed, 0 failed, 0 skipped"
