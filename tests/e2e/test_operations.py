"""The data space on one machine that docs/operations.md has the reader type is one."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from tests.support.ports import free_range

PAGE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()


def test_what_the_page_says_makes_a_data_space(tmp_path: Path) -> None:
    script, _ = re.findall(r"^```bash\n(.*?)^```", PAGE, re.M | re.S)  # test_witnesses runs the other one
    first = free_range(6)
    numbers = {9000: first, 9010: first + 1, 9011: first + 2, 9020: first + 3, 9021: first + 4}
    moved = re.sub(
        r"\b(?:3A)?(90[012][01])\b", lambda port: port[0].replace(port[1], str(numbers[int(port[1])])), script
    )
    env = {name: value for name, value in os.environ.items() if not name.startswith("HANSE_")}
    env |= {"PATH": f"{Path(sys.executable).parent}:{env['PATH']}", "PYTHONPATH": str(Path.cwd())}
    with subprocess.Popen(
        ["bash", "-e", "-c", moved], cwd=tmp_path, env=env, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as running:  # fmt: skip
        try:
            said, _ = running.communicate(timeout=240)
        finally:
            os.killpg(running.pid, signal.SIGTERM)
    assert running.returncode == 0, said
    assert re.search(r"^n\s*\n3\s*$", said, re.M), said
