"""The cell magic `%%hanse`: runs the SQL of a notebook cell and shows the answer (`%load_ext hanse`).

IPython is not imported: it hands itself over, and a plain function is registered.
"""

from __future__ import annotations

import shlex
import sys
from argparse import ArgumentParser, Namespace
from importlib.util import find_spec
from typing import Any, NoReturn, Protocol

from hanse.client import Space
from hanse.errors import BadInput, HanseError

_USAGE = "%%hanse [NAME] [--purpose PURPOSE] [--space VARIABLE]"


class Shell(Protocol):
    """What of IPython's shell is used here."""

    user_ns: dict[str, Any]

    def register_magic_function(self, func: Any, magic_kind: str, magic_name: str) -> None: ...


class _Options(ArgumentParser):
    """Options of the first line. Raises: BadInput instead of ending the process."""

    def error(self, message: str) -> NoReturn:
        raise BadInput(f"{message}; expected {_USAGE} and SQL below it")


class HanseMagic:
    """`%%hanse` in one shell. Without a space among the variables, `hanse.connect()` makes one when it is needed."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell
        self._space: Space | None = None
        self._options = _Options(prog="%%hanse", add_help=False)
        self._options.add_argument("name", nargs="?", default="")
        self._options.add_argument("--purpose", default="")
        self._options.add_argument("--space", default="space")

    def run_cell(self, line: str, cell: str) -> Any:
        """Run the SQL of a cell. Returns the answer as a pandas frame, without pandas as an Arrow table.

        A name in the first line keeps the answer in a variable. A refusal is printed as one message.
        """
        try:
            options = self._read_options(line)
            answer = self._find_space(options.space).query(cell, purpose=options.purpose)
            found = answer.to_pandas() if find_spec("pandas") else answer.to_arrow()
        except HanseError as error:
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
            return None
        if options.name:
            self._shell.user_ns[options.name] = found
        return found

    def _read_options(self, line: str) -> Namespace:
        try:
            words = shlex.split(line)
        except ValueError as error:
            raise BadInput(f"{error}; expected {_USAGE} and SQL below it") from error
        options = self._options.parse_args(words)
        if options.name and not options.name.isidentifier():
            raise BadInput(f"expected the name of a variable, got {options.name!r}; expected {_USAGE}")
        return options

    def _find_space(self, variable: str) -> Space:
        found = self._shell.user_ns.get(variable)
        if isinstance(found, Space):
            return found
        if variable != "space":
            raise BadInput(f"expected a space in the variable {variable}, got {type(found).__name__}; use connect()")
        if self._space is None:
            from hanse import connect

            self._space = connect()
        return self._space


def register(shell: Shell) -> None:
    """Give a shell the magic."""
    shell.register_magic_function(HanseMagic(shell).run_cell, magic_kind="cell", magic_name="hanse")
