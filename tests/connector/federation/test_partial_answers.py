"""Answers without an owner: only where they are asked for and mean something, and they say who is missing."""

from __future__ import annotations

import pytest

from connector.errors import Denied, PeerUnreachable
from connector.federation.partial_answers import explain_misleading
from connector.federation.planner import sql_text
from connector.federation.planner.model import UnreachableOwner
from tests.support.asking import Asked

asyncio_module = pytest.mark.asyncio(loop_scope="module")

STANDS = [
    'SELECT id, age FROM "all".patients',
    'SELECT DISTINCT ward FROM "all".patients WHERE age > 3 ORDER BY ward',
    'SELECT ward, count(*), count(DISTINCT id), sum(age), avg(age) FROM "all".patients GROUP BY ward ORDER BY 1',
    'SELECT count(*) FILTER (WHERE age > 3) FROM "all".patients',
    'SELECT id FROM "all".patients LIMIT 5',
    "SELECT ward, CASE WHEN ward = 3 THEN sum(age) ELSE sum(CASE WHEN age > 3 THEN 1 END) / count(*) END AS n "
    'FROM "all".patients GROUP BY ward',
]
MISLEADS = [
    ('SELECT max(age) FROM "all".patients', "MAX"),
    ('SELECT median(age) FROM "all".patients', "MEDIAN"),
    ('SELECT id FROM "all".patients ORDER BY age DESC LIMIT 5', "first rows"),
    ('SELECT id FROM "all".patients ORDER BY age OFFSET 5', "passed over"),
    ('SELECT id FROM "all".patients OFFSET 5', "passed over"),
    ('SELECT ward FROM "all".patients GROUP BY ward HAVING count(*) > 5', "HAVING"),
    ("SELECT ward, CASE WHEN count(*) > 5 THEN 'many' END AS n FROM \"all\".patients GROUP BY ward", "judges"),
    ('SELECT ward, sum(age) BETWEEN 1 AND 9 AS n FROM "all".patients GROUP BY ward', "judges"),
    ('SELECT id, rank() OVER (ORDER BY age) FROM "all".patients', "ranks"),
    ('SELECT id FROM "all".patients p WHERE NOT EXISTS (SELECT 1 FROM "all".visits v WHERE v.id = p.id)', "query"),
    ('SELECT id FROM "all".patients WHERE age > (SELECT avg(age) FROM "all".patients)', "query"),
    ('SELECT id FROM "all".patients EXCEPT SELECT id FROM "all".visits', "query"),
    ('SELECT p.id FROM "all".patients p JOIN "all".visits v ON v.id = p.id', "one dataset"),
    ('SELECT p.id FROM "all".patients p JOIN north.wards w ON w.ward = p.ward', "one dataset"),
    ("SELECT id FROM north.patients", "one dataset"),
]


@pytest.mark.parametrize("sql", STANDS)
def test_rows_counts_sums_and_averages_of_one_union_mean_something_without_an_owner(sql: str) -> None:
    assert explain_misleading(sql_text.read(sql)) == ""


@pytest.mark.parametrize(("sql", "words"), MISLEADS, ids=[sql for sql, _ in MISLEADS])
def test_what_a_missing_owner_would_falsify_is_told_with_the_reason(sql: str, words: str) -> None:
    assert words in explain_misleading(sql_text.read(sql))


COUNTS = 'SELECT ward, count(*) AS n FROM "all".patients GROUP BY ward ORDER BY ward'
TOTAL = 'SELECT count(*) AS n FROM "all".patients'


@asyncio_module
@pytest.mark.parametrize(("how", "stage"), [("down", "asking"), ("cut", "checking"), ("no_end", "checking")])
async def test_the_answer_is_that_about_the_others_and_lists_who_is_missing(asked: Asked, how: str, stage: str) -> None:
    asked.owners.break_("south", how)
    rows, end = await asked.rows(TOTAL, partial=True)
    assert rows == [{"n": 50 + 52}]
    assert (end["status"], end["partial"]) == ("complete", True)
    (missing,) = end["missing"]
    assert (missing["owner"], missing["dataset"], missing["stage"]) == ("south", "patients", stage)
    assert missing["reason"].startswith('"south" (f0.south: patients)')
    assert [one["owner"] for one in end["owners"]] == ["north", "west"]
    (event,) = asked.recorded
    assert (event.outcome, [one["owner"] for one in event.detail["missing"]]) == ("ok", ["south"])
    assert [one.agreement for one in asked.under if "missing" in one.detail] == ["north-patients", "south-patients"]


@asyncio_module
async def test_an_owner_that_is_late_is_missing_while_there_is_still_time_for_the_others(asked: Asked) -> None:
    asked.owners.break_("south", "slow")
    rows, end = await asked.late(TOTAL, answered=2, partial=True)
    assert rows == [{"n": 50 + 52}]
    assert [one["code"] for one in end["missing"]] == ["time_limit"]
    assert asked.owners.of["south"].cancelled == 1


@asyncio_module
async def test_a_whole_answer_is_not_partial_however_it_was_asked_for(asked: Asked) -> None:
    rows, end = await asked.rows(TOTAL, partial=True)
    assert (rows, end["partial"], end["missing"]) == ([{"n": 153}], False, [])


@asyncio_module
async def test_without_being_asked_for_there_is_no_partial_answer(asked: Asked) -> None:
    asked.owners.break_("south", "down")
    with pytest.raises(PeerUnreachable):
        await asked.rows(TOTAL)


@asyncio_module
async def test_a_question_that_a_missing_owner_would_falsify_is_an_error_with_both_reasons(asked: Asked) -> None:
    asked.owners.break_("south", "down")
    with pytest.raises(PeerUnreachable) as failed:
        await asked.rows('SELECT max(age) AS m FROM "all".patients', partial=True)
    assert failed.value.facts["owner"] == "south"
    assert "no partial answer either: MAX" in failed.value.message


@asyncio_module
async def test_an_owner_that_says_no_is_not_missing(asked: Asked) -> None:
    asked.owners.break_("south", "refuse:revoked")
    with pytest.raises(Denied):
        await asked.rows(TOTAL, partial=True)


@asyncio_module
async def test_an_answer_without_any_owner_is_none(asked: Asked) -> None:
    for name in asked.owners.of:
        asked.owners.break_(name, "down")
    with pytest.raises(PeerUnreachable):
        await asked.rows(TOTAL, partial=True)


# An owner that cannot even be asked what it shares


def _silent(asked: Asked, owner: str, dataset: str = "patients") -> None:
    del asked.owners.tables[owner, "patients"]
    down = PeerUnreachable(f"http://{owner} cannot be reached")
    asked.owners.silent = (UnreachableOwner(owner, dataset, f"did:web:{owner}", f"{owner}-patients", down),)


@asyncio_module
@pytest.mark.parametrize("dataset", ["patients", ""], ids=["known by name", "known by its agreement alone"])
async def test_an_owner_that_is_down_from_the_start_is_an_error_and_not_left_out(asked: Asked, dataset: str) -> None:
    _silent(asked, "south", dataset)
    with pytest.raises(PeerUnreachable) as failed:
        await asked.rows(TOTAL)
    assert (failed.value.facts["owner"], failed.value.facts["stage"]) == ("south", "planning")
    assert asked.recorded[0].outcome == "failed"
    assert not any(owner.asked for owner in asked.owners.of.values())


@asyncio_module
async def test_an_owner_that_is_down_from_the_start_is_missing_from_a_partial_answer(asked: Asked) -> None:
    _silent(asked, "south")
    rows, end = await asked.rows(TOTAL, partial=True)
    assert rows == [{"n": 50 + 52}]
    assert [(one["owner"], one["stage"]) for one in end["missing"]] == [("south", "planning")]


@asyncio_module
async def test_an_owner_that_is_down_does_not_matter_to_questions_about_others(asked: Asked) -> None:
    _silent(asked, "south")
    rows, _ = await asked.rows("SELECT count(*) AS n FROM north.patients")
    assert rows == [{"n": 50}]
    with pytest.raises(PeerUnreachable) as failed:
        await asked.rows("SELECT count(*) AS n FROM south.patients", partial=True)
    assert (failed.value.facts["owner"], failed.value.facts["stage"]) == ("south", "planning")
