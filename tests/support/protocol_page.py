"""State diagrams in docs/protocol.md, written from the tables: `python -m tests.support.protocol_page [--check]`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from connector.dsp import auto_decisions, states

PAGE = Path(__file__).parent.parent.parent / "docs" / "protocol.md"
_SHORT = {states.CONSUMER: "C", states.PROVIDER: "P"}


def diagram(table: states.Table) -> str:
    """A machine as a Mermaid state diagram; one arrow for messages that lead from and to the same states."""
    arrows: dict[tuple[str, str], dict[str, list[str]]] = {}
    for step, after in table.items():
        senders = arrows.setdefault((step.state or "[*]", after), {}).setdefault(_name(step.message), [])
        senders.append(_SHORT[step.sender])
    lines = ["```mermaid", "stateDiagram-v2"]
    for (before, after), told in arrows.items():
        label = ", ".join(f"{message} ({' or '.join(senders)})" for message, senders in told.items())
        lines.append(f"    {before} --> {after}: {label}")
    lines += [f"    {state} --> [*]" for state in states.states(table) if state in states.FINAL]
    return "\n".join([*lines, "```"])


def _name(message: str) -> str:
    kind, _, event = message.partition(":")
    return event or kind.removesuffix("Message")


_CASES = ((True, True), (False, True), (True, False))  # same terms, permitted


def turns() -> str:
    """What is sent by itself, in a row for each place where a message of ours is due."""
    lines = [
        "| we are | state | decides | terms as published or asked for | other terms | not known to be permitted |",
        "|---|---|---|---|---|---|",
    ]
    for noun, table in (("", auto_decisions.NEGOTIATION), (" of a transfer", auto_decisions.TRANSFER)):
        for role, state in table:
            rows = {
                decide: _moves(table, role, state, decide) for decide in (auto_decisions.AUTO, auto_decisions.RULES)
            }
            same = rows[auto_decisions.AUTO] == rows[auto_decisions.RULES]
            for decide, moves in rows.items():
                who = "auto, rules" if same else decide
                lines.append(f"| {role}{noun} | {state} | {who} | {' | '.join(moves)} |")
                if same:
                    break
    return "\n".join(lines)


def _moves(table: auto_decisions.Table, role: str, state: str, decide: str) -> list[str]:
    cases = (
        auto_decisions.DecisionCase(decide=decide, same_terms=same, permitted=permitted) for same, permitted in _CASES
    )
    moves = (auto_decisions.next_message(table, role=role, state=state, case=case) for case in cases)
    return [_name(move) or "a person" for move in moves]


PARTS = {
    "negotiation": lambda: diagram(states.NEGOTIATION),
    "transfer": lambda: diagram(states.TRANSFER),
    "decisions": turns,
}


def written(page: str) -> str:
    """The page with every generated part as the tables have it now."""
    for name, make in PARTS.items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        page, count = re.subn(
            pattern, lambda found, make=make: f"{found[1]}{make()}\n{found[2]}", page, flags=re.DOTALL
        )  # type: ignore[misc]  # bound by default
        if count != 1:
            raise SystemExit(f"expected the marks <!-- {name} --> and <!-- /{name} --> once in {PAGE}")
    return page


def main() -> None:
    page = PAGE.read_text("utf-8")
    fresh = written(page)
    if "--check" in sys.argv[1:] and fresh != page:
        raise SystemExit(f"{PAGE} is not what the tables say; run `python -m tests.support.protocol_page`")
    PAGE.write_text(fresh, "utf-8")


if __name__ == "__main__":
    main()
