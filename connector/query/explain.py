"""A plan in words (federated-query, section 9.3): what runs at which owner, what travels, what stays here and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from connector.query.federation import Fragment, Plan


def text(plan: Plan, *, actual: Sequence[Mapping[str, Any]] = ()) -> str:
    """The plan as lines; `actual` are the owners' figures of a run (EXPLAIN ANALYZE)."""
    figures = {str(one["fragment"]): one for one in actual}
    owners = plan.owners()
    lines = [f"query over {', '.join(owners)}; {len(plan.fragments)} fragments; mode {plan.mode.value}"]
    for fragment in plan.fragments:
        lines += _fragment(fragment, figures.get(fragment.id))
    lines.append("here")
    lines.append(f"    {plan.residual}")
    if plan.notes:
        lines.append("not at the owners")
        lines += [f"    {note.text()}" for note in plan.notes]
    return "\n".join(lines)


def _fragment(fragment: Fragment, actual: Mapping[str, Any] | None) -> list[str]:
    shown = ", ".join(fragment.datasets)
    head = f"{fragment.id} at {fragment.owner}: {fragment.kind} of {shown}, {len(fragment.outputs)} columns"
    if fragment.rows is not None:
        head += f", at most {_count(fragment.rows)} rows read"
    if actual is not None:
        head += f"; came {actual['rows']:,} rows, {actual['bytes']:,} bytes in {actual['ms']} ms"
        head += ", groups withheld" if actual.get("withheld") else ""
    lines = [head, f"    {fragment.sql}"]
    lines += [f"    pushed: {'; '.join(fragment.pushed)}"] if fragment.pushed else []
    lines += [f"    keys: {key.column} from {key.source}.{key.output}" for key in fragment.keys]
    lines += ["    only groups that are large enough at this owner"] if fragment.aggregate_only else []
    return lines


def _count(rows: int) -> str:
    return f"about {rows:,}"


def to_json(plan: Plan, *, actual: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """The plan for machines, with its text."""
    return plan.to_json() | {"text": text(plan, actual=actual), "actual": [dict(one) for one in actual]}
