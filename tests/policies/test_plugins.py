"""A plugin as it is installed: a distribution with entry points on the path, taken in by a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from policies import plugins
from policies.contracts import columns
from policies.contracts.masks import MASKS, MaskWord
from policies.vocabulary import OPERANDS, Action, Operand, Phase, Tier, ValueType, odrl

PLUGIN = '''
"""One file: a word about the answer, a word about the party, a mask, a source of facts."""
from dataclasses import replace
from sqlglot import exp
from policies.contracts import columns
from policies.evaluation.evaluate import Fact
from policies.contracts.masks import MaskWord
from policies.vocabulary import Operand, Phase, Tier, ValueType

ROWS = Operand(name="https://x.example/sample", type=ValueType.INTEGER, ops=frozenset({"lteq"}), phase=Phase.QUERY,
               tier=Tier.TECHNICAL, fact="https://x.example/sample", enforced_by="gate", by_engine=True,
               help="Rows that leave at most.", sentence="the rows of an answer {op} {value}")
SHIP = Operand(name="https://x.example/ship", type=ValueType.TEXT, ops=frozenset({"eq"}), phase=Phase.TRANSFER,
               tier=Tier.ATTESTED, fact="https://x.example/ship", enforced_by="identity", sources=("harbour",),
               help="The ship.", sentence="the ship of the party {op} {value}")
OPERANDS = (ROWS, SHIP)
SOURCES = {"harbour": "the harbour master"}

def sample(draft, atom, path):
    draft.limits = replace(draft.limits, rows=int(atom.right[0].text))
    return True

LOWER = {ROWS.name: sample}

def last(value, argument, maker):
    text = exp.TryCast(this=value, to=exp.DataType.build("VARCHAR"))
    return exp.Right(this=text, expression=maker.parameters.add(argument))

def number(text):
    if text is None or not text.isdecimal():
        raise ValueError("needs a whole number")
    return int(text)

MASKS = (MaskWord(name="last", help="The last characters.", sentence="cut to the last {} characters", build=last,
                  argument=number),)

class Harbour:
    NAME, HELP, SUPPLIES = "harbour", "the harbour master", ("https://x.example/ship", "ds:permit")

    async def facts(self, participant):
        return {"https://x.example/ship": Fact(("Emma",), "harbour", 4e9), "ds:permit": Fact(("P-1",), "harbour", 4e9),
                "ds:membership": Fact(("active",), "harbour")}

source = Harbour()
'''
TRY = """
import asyncio, json
import duckdb
from connector.usage import fact_sources
from policies import plugins
from policies.contracts import compile as compiler
from policies.odrl import reader
from policies.review import lint, phrases
from policies.contracts.contract import Column, TableSchema
from policies.evaluation.evaluate import as_granting_set, evaluate
from policies.vocabulary import OPERANDS, Phase, ds, expand
from policies.enforce.gate import GatedDataset, prepare

loaded = plugins.load_plugins()
found = fact_sources.load()
facts = asyncio.run(fact_sources.ask(found, "did:web:a.example"))
policy = reader.read({"@id": "urn:x", "@type": "Offer", "permission": [{"action": "ds:query", "constraint": [
    {"leftOperand": "https://x.example/sample", "operator": "lteq", "rightOperand": "7"},
    {"leftOperand": "https://x.example/ship", "operator": "eq", "rightOperand": "Emma"}],
    "duty": [{"action": "ds:mask", "constraint": [
        {"leftOperand": "ds:column", "operator": "eq", "rightOperand": "name"},
        {"leftOperand": "ds:method", "operator": "eq", "rightOperand": "last"},
        {"leftOperand": "ds:argument", "operator": "eq", "rightOperand": "2"}]}]}]})
schema = TableSchema((Column("name", "VARCHAR"),))
contract = compiler.compile_contracts(policy, schema, concluded=1.8e9)[0]
tokens = iter(f"t{n}" for n in range(99))
made = prepare("SELECT name FROM o.t", [GatedDataset(("o", "t"), "src", contract)], action=ds("query"), purpose=None,
               token=lambda: next(tokens), mask_key=b"k" * 32)
con = duckdb.connect()
con.execute("CREATE TABLE src AS SELECT 'Hamburg' AS name")
granting = as_granting_set(policy, at=1.8e9)
decide = lambda known: evaluate(granting, known, action=ds("query"), phase=Phase.QUERY, now=1.8e9)
print(json.dumps({
    "loaded": loaded, "sources": [one.NAME for one in found], "facts": sorted(facts), "rows": contract.limits.rows,
    "shown": con.execute(made.sql, made.params).fetchall(), "lint": [p.code for p in lint.lint(policy, schema)],
    "with": decide(facts).permitted, "without": list(decide(facts.without("https://x.example/ship")).reasons),
    "says": phrases.duty(policy.permissions[0].duties[0]), "permit": list(OPERANDS[expand("ds:permit")].sources),
}))
"""


def test_an_installed_plugin_brings_a_term_a_mask_and_a_source_of_facts(tmp_path: Path) -> None:
    (tmp_path / "harbour_words.py").write_text(PLUGIN)
    info = tmp_path / "harbour_words-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: harbour-words\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[hanse.policy_terms]\nharbour = harbour_words\n[hanse.fact_sources]\nharbour = harbour_words:source\n"
    )
    root = str(Path(__file__).parents[2])
    ran = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {root!r}]\n{TRY}"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    assert (found["loaded"], found["sources"]) == (["harbour"], ["harbour"])
    assert found["facts"] == ["ds:permit", "https://x.example/ship"]  # membership is not for a plugin to say
    assert (found["rows"], found["shown"]) == (7, [["rg"]])
    assert found["lint"] == []
    assert found["with"] is True
    assert "it can come from the harbour master" in " ".join(found["without"])
    assert found["says"] == "have name cut to the last 2 characters in every answer"
    assert found["permit"] == ["owner", "harbour"]


def word(**changed: Any) -> Operand:
    given: dict[str, Any] = {
        "name": "https://x.example/word",
        "type": ValueType.TEXT,
        "ops": frozenset({"eq"}),
        "phase": Phase.TRANSFER,
        "tier": Tier.ATTESTED,
        "fact": "https://x.example/word",
        "enforced_by": "identity",
        "help": "x.",
        "sentence": "x {op} {value}",
        **changed,
    }
    return Operand(**given)


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (lambda: word(tier=Tier.TECHNICAL, enforced_by=""), "names nothing that enforces it"),
        (lambda: word(tier=Tier.TECHNICAL, enforced_by="magic"), "expected enforced_by to be one of"),
        (lambda: word(tier=Tier.TECHNICAL, enforced_by="gate", by_engine=True), "has no function in LOWER"),
        (lambda: word(tier=Tier.TECHNICAL, sources=("register",)), "declare it attested, not technical"),
    ],
)
def test_a_word_without_a_way_to_enforce_it_cannot_claim_to_be_technical(made: Any, says: str) -> None:
    before = dict(OPERANDS)
    with pytest.raises(ValueError, match=says):
        plugins.register_plugin(SimpleNamespace(OPERANDS=(made(),)))
    assert before == OPERANDS


def test_an_action_of_a_plugin_is_never_technical() -> None:
    action = Action(
        name="https://x.example/sail",
        parent=odrl("use"),
        help="x",
        phrase="sail",
        tier=Tier.TECHNICAL,
        enforced_by="gate",
    )
    with pytest.raises(ValueError, match="expected contractual for an action of a plugin"):
        plugins.register_plugin(SimpleNamespace(ACTIONS=(action,)))


def test_a_mask_without_sql_or_with_a_taken_name_is_refused() -> None:
    given: dict[str, Any] = {"help": "x", "sentence": "x", "argument": lambda text: None, "families": {columns.TEXT}}
    with pytest.raises(ValueError, match="has no function that enforces it"):
        MaskWord(name="none", build=None, **given)  # type: ignore[arg-type]  # what a plugin may get wrong
    with pytest.raises(ValueError, match="registered already"):
        plugins.register_plugin(SimpleNamespace(MASKS=(MaskWord(name="hash", build=lambda *_: None, **given),)))
    assert MASKS == {}
