"""A command that a message, a page or a guide names exists, with the option that it names."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import typer
from hanse.cli import _installed, _loaded, app

from connector.help import site

ROOT = Path(__file__).parents[3]
PLACES = ("connector", "catalogue", "policies", "client", "docs", "README.md", "deploy")
ENDINGS = (".py", ".md", ".html", ".env", ".yaml")
NAMED = re.compile(r"(?:`|\(|<code>)hanse ([a-z][^`)<\n]*)(?:`|\)|</code>)")
CUT = re.compile(r'"\n\s*f?"')  # a text that goes on in the next line of a program
IN_BLOCKS = re.compile(r"^(?:    )?(hanse [a-z].*)$", re.MULTILINE)


def _named() -> Iterator[tuple[str, str]]:
    for place in PLACES:
        whole = ROOT / place
        files = [whole] if whole.is_file() else [f for f in whole.rglob("*") if f.suffix in ENDINGS]
        files = [f for f in files if not f.is_relative_to(site.FOLDER)]  # built from the others
        for file in files:
            said = CUT.sub("", file.read_text())
            lines = IN_BLOCKS.findall(said) if file.suffix == ".md" else []
            for text in (*NAMED.findall(said), *chain.from_iterable(map(_run_by, lines))):
                yield str(file.relative_to(ROOT)), text


def _run_by(line: str) -> list[str]:
    """The commands of a line of a shell, without what is quoted."""
    plain = " ".join(word for word in shlex.split(line.removesuffix("\\"), comments=True) if " " not in word)
    return [one.removeprefix("hanse ") for one in re.split(r" && |; ", plain)]


CASES = sorted({(text, file) for file, text in _named()})


def _resolve(words: list[str]) -> Any:
    """The click command that the words lead to; None where one of them is not known."""
    command: Any = typer.main.get_command(app)
    for depth, word in enumerate(words):
        if not hasattr(command, "commands") or not word.isalpha() or not word.islower():
            break
        known = command.commands.get(word)
        if known is None and depth == 0 and word in _installed():
            known = _loaded(_installed()[word])
        if known is None:
            return None
        command = known
    return command


@pytest.mark.parametrize(("text", "file"), CASES)
def test_a_named_command_exists(text: str, file: str) -> None:
    # `a | b | c` names several commands of one group.
    first, *others = text.split(" | ")
    words = first.split()
    for named in (words, *[[*words[:-1], *other.split()] for other in others if other != "..." and len(words) > 1]):
        command = _resolve([word for word in named if word != "..."])
        assert command is not None, f"{file} names `hanse {text}`, which is no command"
        options = {word.strip("[]").split("=")[0] for word in named if word.startswith(("--", "[--"))}
        known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
        assert options <= known | {"--help", "--url", "--token"}, f"{file}: `hanse {text}`"


@pytest.mark.parametrize("text", [text for text, _ in CASES if re.match("policy new [a-z]", text)])
def test_a_named_template_exists(text: str) -> None:
    assert (ROOT / "policies" / "templates" / f"{text.split()[2]}.yaml").exists()


def test_the_commands_named_are_found_in_the_first_place() -> None:
    assert len(CASES) >= 20
    assert ("policy new research-aggregate -o offer.yaml", "client/README.md") in CASES
