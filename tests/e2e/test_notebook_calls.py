"""What a notebook calls on a running data space: columns, schema, first rows and frames, and refusals with advice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import hanse
import pytest
from IPython.core.interactiveshell import InteractiveShell

from tests.e2e.conftest import SECRET, Running


def test_a_dataset_of_rows_becomes_a_frame(running: Running) -> None:
    rows = running.story.agreed["north/secret_rows"]
    assert "diary" not in rows.columns
    assert rows.schema.names == rows.columns
    assert rows.head(3).num_rows == 3
    assert list(rows.to_pandas(columns=["country"], where="country = 'FR'").country.unique()) == ["FR"]
    assert len(rows.to_polars()) == 63


def test_a_dataset_of_figures_says_how_to_ask_for_them(running: Running) -> None:
    figures = running.story.agreed["north/secrets"]
    assert {"country", "town", "visits"} <= {*figures.columns}
    for act in (figures.head, figures.to_pandas, figures.to_polars, lambda: figures.schema):
        with pytest.raises(hanse.Refused, match=r"dataset\.query\(\)") as caught:
            act()
        assert SECRET not in str(caught.value)


def test_a_space_lists_what_there_is(running: Running) -> None:
    space = running.forge
    assert {entry.participant for entry in space.datasets(owner="north")} == {"north"}
    assert "north/flights" in space._ipython_key_completions_()
    known = running.story.agreed["north/secret_rows"]
    assert space["north/secret_rows"].agreement_id == known.agreement_id
    assert known.agreement_id in {row["id"] for row in space.agreements(role="consumer")}
    assert isinstance(space.pending(), list)


@pytest.fixture
def shell(running: Running) -> Iterator[InteractiveShell]:
    """A shell of IPython with the extension loaded and a space among its variables."""
    made = InteractiveShell()
    made.run_line_magic("load_ext", "hanse")
    made.user_ns["space"] = running.forge
    yield made
    made.history_manager.end_session()


def run_cell(shell: InteractiveShell, cell: str) -> Any:
    done = shell.run_cell(cell)
    done.raise_error()
    return done.result


def test_a_cell_runs_its_sql_and_keeps_the_answer(shell: InteractiveShell) -> None:
    sql = 'SELECT count(*) AS n FROM "north".secret_rows'
    found = run_cell(shell, f"%%hanse answer --purpose dpv:ScientificResearch\n{sql}")
    assert found.n[0] == 63
    assert shell.user_ns["answer"] is found
    assert run_cell(shell, f"%%hanse --purpose dpv:ScientificResearch\n{sql}").n[0] == 63


@pytest.mark.parametrize(
    ("line", "said"),
    [("", "BadInput: there is no agreement in force"), ("--purposes x", "expected %%hanse"),
     ("two words", "expected %%hanse"), ("'", "quotation"), ("1answer", "name of a variable"),
     ("--space nothing", "expected a space in the variable nothing")],
)  # fmt: skip
def test_a_cell_that_is_refused_says_why_in_one_message(
    shell: InteractiveShell, capsys: pytest.CaptureFixture[str], line: str, said: str
) -> None:
    assert run_cell(shell, f"%%hanse {line}\nSELECT * FROM north.nothing_here") is None
    written = capsys.readouterr()
    assert "Traceback" not in written.out + written.err
    assert said.lower() in (written.out + written.err).lower()
