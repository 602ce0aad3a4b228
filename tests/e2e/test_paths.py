"""The five paths of the help, word for word: each block of a page runs in order against a running data space.

A block with `title="FILE"` is saved as that file; `sh` blocks run in one shell; a `text` block is what the block before
prints, at least; a title with "exit code N" says how the block ends; a title with "window" is for another window.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from tests.e2e.conftest import Running
from tests.support import screenshots

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs" / "paths").glob("*.md"))
_BLOCK = re.compile(r'^```(\w+)(?: title="([^"]*)")?\n(.*?)^```', re.M | re.S)
_WINDOWS = {"first window": "make demo", "third window": "hanse connector serve"}
_END = "--- end of block"


@dataclass(frozen=True, slots=True)
class Block:
    """A block of a page with its title and the lines that it prints."""

    language: str
    title: str
    text: str
    printed: tuple[str, ...] = ()


def read_blocks(page: Path) -> list[Block]:
    """The blocks of a page in order; a `text` block belongs to the one before it."""
    found: list[Block] = []
    for language, title, text in _BLOCK.findall(page.read_text("utf-8")):
        if language == "text":
            last = found.pop()
            found.append(Block(last.language, last.title, last.text, tuple(text.splitlines())))
        else:
            found.append(Block(language, title, text))
    return found


def test_there_are_five_paths_and_each_block_is_run_or_is_for_another_window() -> None:
    assert [page.stem for page in PAGES] == ["auditor", "model-builder", "operator", "owner", "trainer"]
    for page in PAGES:
        for block in read_blocks(page):
            assert block.language == "sh" or re.fullmatch(r"[\w-]+\.(py|yaml)", block.title), (page.stem, block)
            if "window" in block.title:
                assert _WINDOWS[block.title] in block.text


@pytest.fixture(scope="module")
def played(running: Running) -> Running:
    """The space after a question over all patients, as the demo's story asks one."""
    question = 'SELECT horTh, count(*) AS n FROM "all".patients GROUP BY horTh'
    running.forge.query(question, purpose="dpv:ScientificResearch").to_arrow()
    return running


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_path_runs_word_for_word(played: Running, page: Path, tmp_path: Path) -> None:
    (tmp_path / "var").mkdir()
    (tmp_path / "var" / "demo").symlink_to(played.space.directory)
    (tmp_path / ".venv").symlink_to(ROOT / ".venv")
    shell = subprocess.Popen(
        ["bash"],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "COLUMNS": "200"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        for block in read_blocks(page):
            if "window" in block.title:
                continue
            text = _with_ports(block.text, played)
            if block.language != "sh":
                (tmp_path / block.title).write_text(text)
                continue
            printed, code = _run(shell, text)
            expected = re.findall(r"exit code (\d+)", block.title)
            waits = "--wait 1" in text  # how it ends while a person has to decide is not the subject
            assert waits or code == int(expected[0] if expected else 0), (text, printed)
            for line in block.printed:
                assert _words(line) in _words(printed), (text, printed)
    finally:
        shell.kill()
        shell.wait()


def _words(text: str) -> str:
    """A text with single spaces: the width of a column is not the subject."""
    return " ".join(text.split())


def _with_ports(text: str, running: Running) -> str:
    first = running.space.port
    return re.sub(r"127\.0\.0\.1:87(0\d)", lambda found: f"127.0.0.1:{first + int(found[1])}", text)


def _run(shell: subprocess.Popen[str], text: str) -> tuple[str, int]:
    """Run a block in the shell; what it printed, and the exit code of its last command."""
    assert shell.stdin is not None
    assert shell.stdout is not None
    shell.stdin.write(f"{text}_code=$?; echo; echo '{_END}' $_code\n")
    shell.stdin.flush()
    lines: list[str] = []
    for line in shell.stdout:
        if line.startswith(_END):
            return "".join(lines), int(line.removeprefix(_END))
        lines.append(line)
    raise AssertionError(f"the shell ended: {''.join(lines)}")


@pytest.mark.parametrize("name", sorted(screenshots.IMAGES))
def test_the_page_of_a_screenshot_exists(running: Running, name: str) -> None:
    shot = screenshots.IMAGES[name]
    member = running.space.members[shot.member]
    answer = httpx2.get(f"{member.management}{shot.path}", headers={"authorization": f"Bearer {member.token}"})
    assert answer.status_code == 200
    assert shot.heading in answer.text


def test_each_image_is_taken_shown_and_small() -> None:
    there = {path.stem for path in screenshots.FOLDER.iterdir()}
    shown = {name for page in PAGES for name in re.findall(r"\(\.\./images/([\w-]+)\.png\)", page.read_text("utf-8"))}
    assert there == shown == set(screenshots.IMAGES)
    assert sum(path.stat().st_size for path in screenshots.FOLDER.iterdir()) < 1_000_000
