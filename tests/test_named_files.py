"""The check of files that the docs name."""

from __future__ import annotations

import pytest

from tests.support.named_files import find_missing, main

PATHS = frozenset({"connector/", "connector/dsp/", "connector/dsp/states.py", "tests/cases/roles.csv"})


@pytest.mark.parametrize("word", ["connector/dsp/states.py", "dsp/states.py", "states.py", "connector/dsp/",
                                  "connector/dsp", "tests/cases/roles.csv", "connector/", "a/b", "x.csv"])  # fmt: skip
def test_a_file_that_is_there_may_be_named(word: str) -> None:
    assert list(find_missing(f"See `{word}`.", PATHS)) == []


@pytest.mark.parametrize("word", ["turns.py", "crawl/states.py", "connector/dsp/turns.py", "connector/dps/",
                                  "tests/cases/rolls.csv", "python connector/start.py"])  # fmt: skip
def test_a_file_that_is_not_there_is_found(word: str) -> None:
    assert list(find_missing(f"See `{word}`.", PATHS)) == [word.split()[-1]]


def test_a_block_of_code_names_no_file() -> None:
    assert list(find_missing("```\nvi `job.py`\n```\n", PATHS)) == []


def test_the_docs_name_files_that_are_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main() == 0, capsys.readouterr().err
