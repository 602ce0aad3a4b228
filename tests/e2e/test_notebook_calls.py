"""What a notebook calls on a running data space: columns, schema, first rows and frames, and refusals with advice."""

from __future__ import annotations

import hanse
import pytest

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
