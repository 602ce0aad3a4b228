"""Describing a dataset and its columns later: what is kept, what is shown, and what is refused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.connector.console.support import Console, Reader, fill, opened

COLUMNS = ["patient", "age", "region", "note"]


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Console]:
    async with opened(tmp_path) as made:
        await fill(made.parts)
        yield made


def form(**changed: list[str]) -> dict[str, str | list[str]]:
    return {"column": COLUMNS, "meaning": ["Who", "", "<b>Where</b>", ""], "unit": ["", "years", "", ""],
            "personal": ["patient"], **changed}  # fmt: skip


async def test_columns_are_described_and_shown_to_readers_of_the_page(desk: Console) -> None:
    assert (await desk.post("/datasets/patients/columns", form(), "owner")).status_code == 303
    for scope in ("owner", "read"):
        page = (await desk.get("/datasets/patients", "read", *([scope] if scope != "read" else []))).text
        assert Reader(page).problems == []
        assert ("<b>Where" in page, "&lt;b&gt;Where" in page, "years" in page) == (False, True, True)
    (patient, age, _, note) = (await desk.http.get(
        "/api/v1/datasets/patients", headers={"authorization": f"Bearer {await desk.token('read')}"}
    )).json()["columns"]  # fmt: skip
    assert (patient["personal"], patient["description"], age["unit"], note["description"]) == (True, "Who", "years", "")


async def test_a_note_is_removed_and_others_stay(desk: Console) -> None:
    await desk.post("/datasets/patients/columns", form(), "owner")
    alone = {"column": ["patient"], "meaning": [""], "unit": [""]}
    await desk.post("/datasets/patients/columns", alone, "owner")
    row, _ = await desk.parts.registry.get("patients")
    assert set(row.column_notes) == {"age", "region"}


@pytest.mark.parametrize(
    "changed",
    [{"column": ["patient", "age", "region", "none"]}, {"unit": ["x"]}, {"meaning": ["x" * 1001, "", "", ""]},
     {"unit": ["x" * 61, "", "", ""]}, {"column": COLUMNS * 200}],
)  # fmt: skip
async def test_a_form_that_does_not_fit_changes_nothing(desk: Console, changed: dict[str, list[str]]) -> None:
    page = await desk.post("/datasets/patients/columns", form(**changed), "owner")
    assert page.status_code in (400, 422)
    assert 'role="alert"' in page.text or "expected a form with at most" in page.text
    row, _ = await desk.parts.registry.get("patients")
    assert row.column_notes == {}


async def test_only_an_owner_on_this_page_describes(desk: Console) -> None:
    for scope in ("read", "approve", "consume", "audit"):
        assert (await desk.post("/datasets/patients/columns", form(), scope)).status_code == 403
    foreign = await desk.post("/datasets/patients/columns", form(), "owner", sec_fetch_site="cross-site")
    assert foreign.status_code == 403


async def test_a_description_is_markdown_without_html(desk: Console) -> None:
    texts = {"title": "People", "description": "# Who\n<script>x</script> **all** [b](javascript:x)",
             "citation": "<i>North</i>", "contact": "a@b.example"}  # fmt: skip
    assert (await desk.post("/datasets/patients/texts", texts, "owner")).status_code == 303
    page = (await desk.get("/datasets/patients", "read")).text
    assert Reader(page).problems == []
    for there in ("<h3>Who</h3>", "<strong>all</strong>", "&lt;i&gt;North", "a@b.example"):
        assert there in page
    for absent in ("<script>x", 'href="javascript', "<i>North"):
        assert absent not in page
