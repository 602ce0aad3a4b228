"""The README's blocks run: Python and commands against a running data space, the offer through the linter."""

from __future__ import annotations

import inspect
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from connector.demo import story
from tests.e2e.conftest import Running

README = (Path(__file__).parents[2] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.M | re.S)


def test_the_python_of_the_readme_runs(
    running: Running, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    forge = running.space.members["forge"]
    monkeypatch.setenv("HANSE_URL", forge.management)
    monkeypatch.setenv("HANSE_TOKEN", forge.token)
    names: dict[str, Any] = {}
    for code in blocks("python"):
        exec(compile(code, "README.md", "exec"), names)
    assert names["table"].num_rows == 2
    assert "patients" in capsys.readouterr().out


COMMANDS = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("hanse ")]


@pytest.mark.parametrize("line", COMMANDS)
def test_the_commands_of_the_readme_run(running: Running, line: str) -> None:
    forge = running.space.members["forge"]
    program = str(Path(sys.executable).with_name("hanse"))
    environment = {
        "HANSE_URL": forge.management,
        "HANSE_TOKEN": forge.token,
        "PATH": "/usr/bin:/bin",
        "HOME": "/nowhere",
    }
    done = subprocess.run(
        [program, *shlex.split(line)[1:]], capture_output=True, text=True, env=environment, timeout=120, check=False
    )
    assert (done.returncode, done.stderr[-2000:]) == (0, done.stderr[-2000:])
    assert done.stdout.strip()


def test_the_readme_names_commands_to_run() -> None:
    assert len(COMMANDS) >= 5


def test_the_readme_asks_for_nothing_that_the_demo_has_revoked() -> None:
    (revoked,) = re.findall(r'story\.agreed\["(\w+)/(\w+)"\]', inspect.getsource(story.revoke))
    for block in (*blocks("python"), *blocks("bash")):
        assert not re.search(rf'"?{revoked[0]}"?[/.]{revoked[1]}', block), block


def test_the_readme_has_at_most_120_lines() -> None:
    assert len(README.splitlines()) <= 120


def test_the_story_in_the_readme_is_the_one_that_is_told() -> None:
    source = Path(story.__file__).read_text()
    shown = re.findall(r"^  ✓ +[\d.]+ m?s +(.+?)(?:  |$)", README, re.M)
    assert len(shown) >= 15
    for title in shown:
        assert title in source, title
