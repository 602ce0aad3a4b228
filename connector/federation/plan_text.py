"""Plan as text: what runs at each owner, what is sent, what runs here and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from connector.federation import plan_svg
from connector.federation.planner.model import FederatedPlan, Fragment
from policies.enforce.withheld import Withheld


def text(
    plan: FederatedPlan, *, actual: Sequence[Mapping[str, Any]] = (), missing: Sequence[Mapping[str, Any]] = ()
) -> str:
    """Return the plan as lines. `actual`: the owners' figures of a run (EXPLAIN ANALYZE); `missing`: absent shares."""
    figures = {str(one["fragment"]): one for one in actual}
    owners = plan.owners()
    lines = [f"query over {', '.join(owners)}; {_many(len(plan.fragments), 'fragment')}; mode {plan.mode.value}"]
    known = [fragment.nbytes for fragment in plan.fragments if fragment.nbytes is not None]
    if len(known) == len(plan.fragments):
        lines[0] += f"; about {plan_svg.size(sum(known))} expected to travel"
    lines += plan.left_out()
    for fragment in plan.fragments:
        lines += _fragment(fragment, figures.get(fragment.id))
    if missing:
        lines.append("missing")
        lines += [f"    {one['reason']}" for one in missing]
    lines.append("here")
    lines.append(f"    {plan.residual}")
    if plan.notes:
        lines.append("not at the owners")
        lines += [f"    {note.text()}" for note in plan.notes]
    return "\n".join(lines)


def _fragment(fragment: Fragment, actual: Mapping[str, Any] | None) -> list[str]:
    shown, kind = ", ".join(fragment.datasets), "result row" if fragment.results else "row"
    head = f"{fragment.id} at {fragment.owner}: {fragment.kind} of {shown}, {_many(len(fragment.outputs), 'column')}"
    if fragment.rows is not None:
        head += f", about {_many(_rounded(fragment.rows), kind)} expected"
    if actual is not None:
        head += f"; came {_many(actual['rows'], kind)}, {actual['bytes']:,} bytes in {actual['ms']} ms"
        head += ", no group given" if actual.get("withheld") == Withheld.SOME and not actual["rows"] else ""
    lines = [head, f"    {fragment.sql}"]
    lines += [f"    pushed: {'; '.join(fragment.pushed)}"] if fragment.pushed else []
    lines += [f"    keys: {key.column} from {key.source}.{key.output}" for key in fragment.keys]
    lines += (
        ["    only groups that are large enough at this owner; no row of data leaves it"]
        if fragment.aggregate_only
        else []
    )
    lines += [f"    {one}" for one in fragment.bins]
    return lines


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"


def _rounded(rows: int) -> int:
    """Round to two digits, the precision of an estimate."""
    magnitude: int = 10 ** max(0, len(str(rows)) - 2)
    return round(rows / magnitude) * magnitude


def to_json(
    plan: FederatedPlan, *, actual: Sequence[Mapping[str, Any]] = (), missing: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """Return the plan as JSON with text, SVG and the estimated bytes sent (None if an owner gives no estimate)."""
    known = [fragment.nbytes for fragment in plan.fragments]
    return plan.to_json() | {
        "text": text(plan, actual=actual, missing=missing),
        "svg": plan_svg.svg(plan, actual=actual),
        "bytes_estimate": None if None in known else sum(one or 0 for one in known),
        "actual": [dict(one) for one in actual],
    }
