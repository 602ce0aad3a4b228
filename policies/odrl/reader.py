"""Reads a policy from JSON-LD. Also re-exports `write`, `digest` and `rules_equal`.

Accepts every spelling of ODRL and refuses, by name, a member that would change a rule and
is not understood. Contexts are never fetched. Unknown terms are kept; later steps refuse them by name. Evaluates
nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from policies import vocabulary
from policies.errors import PolicyUnreadable
from policies.evaluation import values
from policies.model import (
    ODRL,
    XSD,
    Atom,
    ConflictStrategy,
    Connective,
    Constraint,
    Duty,
    Group,
    Kind,
    Literal,
    Policy,
    Rule,
)
from policies.odrl import node_members as members_of
from policies.odrl import strictjson
from policies.odrl.assignee import restrict_to_party
from policies.odrl.digest import digest, rules_equal
from policies.odrl.writer import Json, write
from policies.vocabulary import ValueType, expand

__all__ = ["Json", "digest", "read", "rules_equal", "write"]

MAX_DEPTH = 16
MAX_NODES = 5_000
MAX_VALUES = 10_000


# Bare names that are read as ODRL terms, although the protocol's context defines only a few of them.
_BARE = members_of.split_words(
    """absoluteSize count dateTime delayPeriod deliveryChannel elapsedTime event fileFormat industry language
    media meteredTime payAmount percentage product purpose recipient relativeSize resolution spatial
    spatialCoordinates system systemDevice timeInterval unitOfCount version virtualLocation"""
) | {name.removeprefix(ODRL) for name in (*vocabulary.ACTIONS, *vocabulary.ACTION_ALIASES) if name.startswith(ODRL)}
_PARTS = ("target", "assigner", "assignee")
_LOGIC = {
    "and": Connective.AND,
    "andSequence": Connective.AND,  # the context keeps no order
    "or": Connective.OR,
    "xone": Connective.XONE,
}
_TYPES = {kind.value: kind for kind in Kind}


@dataclass(slots=True)
class _Reader:
    """The state of one reading: prefixes of an inline context, and counts against the limits."""

    prefixes: dict[str, str]
    nodes: int = 0
    values: int = 0
    rules: list[str] = field(default_factory=list)  # paths of permissions, prohibitions and obligations
    parts: dict[str, dict[str, str]] = field(default_factory=dict)  # target and parties of rules, by path
    ids: set[str] = field(default_factory=set)  # ids of nodes

    def count_node(self, path: str, depth: int) -> None:
        self.nodes += 1
        if depth > MAX_DEPTH or self.nodes > MAX_NODES:
            raise PolicyUnreadable(
                f"expected at most {MAX_NODES} rules and constraints nested at most {MAX_DEPTH} deep; split the policy",
                rule=path,
            )

    def count_repeats(self, times: int, since: tuple[int, int], path: str) -> None:
        """Count what a rule has read since `since` (nodes, values) once for each of its further actions."""
        nodes, values = since
        self.nodes += (times - 1) * (self.nodes - nodes)
        self.values += (times - 1) * (self.values - values)
        if self.nodes > MAX_NODES or self.values > MAX_VALUES:
            raise PolicyUnreadable(
                f"expected at most {MAX_NODES} rules and constraints with {MAX_VALUES} values, a rule with several "
                "actions counted once for each; split the policy",
                rule=path,
            )

    def record_parties(self, members: Mapping[str, Any], path: str) -> None:
        """Record the target and parties that a rule or duty names."""
        for part in _PARTS:
            if value := _read_text(members.get(part), f"{path}/{part}"):
                self.parts.setdefault(part, {})[path] = value

    def name(self, term: str) -> str:
        """Expand a written name to an IRI; a name without known prefix that is not an ODRL term stays unchanged."""
        prefix, colon, local = term.partition(":")
        if colon and not local.startswith("//") and prefix in self.prefixes:
            return self.prefixes[prefix] + local
        return ODRL + term if not colon and term in _BARE else expand(term)


def read(obj: Mapping[str, Any] | Sequence[Any] | str | bytes, *, kind: Kind | None = None) -> Policy:
    """Return the policy that `obj` means: parsed JSON, expanded JSON-LD, or JSON text (ODRL 2.2; DSP 2025-1, section
    5).

    `kind` is the type to assume when the object has none; an object of another type is refused.

    Example:

      read({"@type": "Offer", "@id": "urn:hanse:offer:a", "permission": [{"action": "use"}]}).permissions[0].action

    Raises: PolicyUnreadable when the structure is not a policy, exceeds a limit, or has a member whose meaning would be
    lost.
    """
    node, prefixes = _find_policy_node(obj)
    reader = _Reader(prefixes)
    members = _read_members(node, reader, "")
    _refuse_unread_members(members, members_of.POLICY, "")
    policy = Policy(
        kind=_read_kind(node, reader, kind),
        id=_read_text(members.get("uid"), "/@id"),
        permissions=_read_rules(members.get("permission"), reader, "/permission"),
        prohibitions=_read_rules(members.get("prohibition"), reader, "/prohibition"),
        obligations=_read_obligations(members.get("obligation"), reader),
        target=_read_text(members.get("target"), "/target"),
        assigner=_read_text(members.get("assigner"), "/assigner"),
        assignee=_read_text(members.get("assignee"), "/assignee"),
        timestamp=_read_text(members.get("timestamp"), "/timestamp"),
        conflict=_read_conflict(members.get("conflict"), reader),
        profile=" ".join(
            sorted(reader.name(_read_text(one, "/profile")) for one in members_of.as_list(members.get("profile")))
        ),
    )
    return _settle_parties(policy, reader)


def _find_policy_node(obj: object) -> tuple[Mapping[str, Any], dict[str, str]]:
    """Return the single policy node of a document and the prefixes of its inline contexts."""
    if isinstance(obj, str | bytes):
        try:
            obj = strictjson.loads(obj)
        except (ValueError, RecursionError) as problem:
            raise PolicyUnreadable(f"expected a policy as JSON, got text that is not JSON: {problem}") from None
    around: object = None
    if isinstance(obj, Mapping) and "@graph" in obj:
        members_of.refuse_other_members(obj, "", "@context")
        around, obj = obj.get("@context"), obj["@graph"]
    if isinstance(obj, Sequence) and not isinstance(obj, str | bytes) and len(obj) == 1:
        obj = obj[0]
    if not isinstance(obj, Mapping):
        raise PolicyUnreadable(f"expected one policy object, got {_shorten(obj)}")
    return obj, members_of.read_prefixes(around) | members_of.read_prefixes(obj.get("@context"))


def _read_members(node: Mapping[str, Any], reader: _Reader, path: str) -> dict[str, Any]:
    """Return the ODRL members of a node by local name, without annotations."""
    found: dict[str, Any] = {}
    for key, value in node.items():
        if not isinstance(key, str):
            raise PolicyUnreadable(f"expected names as keys, got {_shorten(key)}", rule=path or "/")
        local = members_of.local_name(key, reader.name, path)
        if not local:
            continue
        if local in found:
            raise PolicyUnreadable(f"{local} is given twice under different spellings; keep one", rule=path or "/")
        found[local] = value
    _refuse_known_id(reader.name(_read_text(found.get("uid"), f"{path}/@id")), reader, path)
    return found


def _refuse_known_id(name: str, reader: _Reader, path: str) -> None:
    """Refuse an id that occurs twice: JSON-LD merges nodes of one id, so two rules would become one."""
    if name and name in reader.ids:
        raise PolicyUnreadable(
            f"expected each @id once, got {name[:80]!r} again; two rules or constraints of one id are one to others",
            rule=path or "/",
        )
    reader.ids.add(name)


def _refuse_unread_members(members: Mapping[str, Any], known: frozenset[str], path: str) -> None:
    for member in members:
        if member not in known and member not in ("type", "label", "comment"):
            raise PolicyUnreadable(
                f"{member} is not carried by the protocol and would be lost, so the rule would mean something "
                f"else; expected only {', '.join(sorted(known))}. Express it as a constraint or leave it out",
                rule=f"{path}/{member}",
                code="member_not_carried",
            )


def _read_kind(node: Mapping[str, Any], reader: _Reader, wanted: Kind | None) -> Kind:
    names = [
        reader.name(str(one)).removeprefix(ODRL) for one in members_of.as_list(node.get("@type", node.get("type")))
    ]
    found = [_TYPES[name] for name in names if name in _TYPES]
    if names == ["Policy"] and wanted is None:
        found = [Kind.SET]  # ODRL IM 2.1: a policy without a subclass is a Set
    if not names and wanted is not None:
        return wanted
    if len(found) != 1 and not (wanted and names == ["Policy"]):
        raise PolicyUnreadable(
            f"expected @type Offer, Agreement or Set, got {', '.join(names) or 'none'}; add the type", rule="/@type"
        )
    actual = found[0] if found else wanted
    if actual is None or (wanted is not None and actual is not wanted):
        raise PolicyUnreadable(f"expected @type {wanted}, got {actual}", rule="/@type")
    return actual


def _read_conflict(value: object, reader: _Reader) -> ConflictStrategy:
    # The protocol's context has no term for it, so when it is absent this project's default applies.
    parts = members_of.as_list(value)
    if not parts:
        return ConflictStrategy.PROHIBIT
    name = reader.name(_read_text(value, "/conflict")).removeprefix(ODRL)
    if name not in {strategy.value for strategy in ConflictStrategy}:
        raise PolicyUnreadable(f"expected conflict perm, prohibit or invalid, got {name!r}", rule="/conflict")
    return ConflictStrategy(name)


def _settle_parties(policy: Policy, reader: _Reader) -> Policy:
    """Move target and parties of the rules to the policy; the assignee of an offer or set becomes a constraint."""
    settled = replace(
        policy,
        target=_merge_part("target", policy.target, reader),
        assigner=_merge_part("assigner", policy.assigner, reader),
        assignee=_merge_part("assignee", policy.assignee, reader),
    )
    if policy.kind is Kind.AGREEMENT or not settled.assignee:
        return settled
    return restrict_to_party(replace(settled, assignee=""), settled.assignee)


def _merge_part(part: str, own: str, reader: _Reader) -> str:
    """Return the value on the policy, or the value on which all rules agree."""
    values_by_rule = reader.parts.get(part, {})
    agreed = own or next(iter(values_by_rule.values()), "")
    for path, value in values_by_rule.items():
        if value != agreed:
            raise PolicyUnreadable(
                f"expected the policy's own {part} {agreed!r} or none, got {value!r}; "
                "write one policy per target and party",
                rule=f"{path}/{part}",
            )
    if agreed and not own and (silent := [path for path in reader.rules if path not in values_by_rule]):
        raise PolicyUnreadable(
            f"expected {part} {agreed!r} on the policy or on each of its rules, got none on {silent[0]}; "
            "state it once, on the policy, or write one policy per target and party",
            rule=f"{silent[0]}/{part}",
        )
    return agreed


def _read_rules(value: object, reader: _Reader, path: str) -> tuple[Rule, ...]:
    found: list[Rule] = []
    for index, node in enumerate(_read_nodes(value, path)):
        here, before = f"{path}/{index}", (reader.nodes, reader.values)
        reader.count_node(here, 1)
        members = _read_members(node, reader, here)
        _refuse_unread_members(members, members_of.RULE, here)
        _refuse_other_kind(node, reader, here)
        reader.rules.append(here)
        reader.record_parties(members, here)
        constraints = _read_constraints(members.get("constraint"), reader, f"{here}/constraint", 2)
        duties = _read_duties(members.get("duty"), reader, f"{here}/duty")
        # ODRL IM 2.7.1: a rule with several actions stands for one rule each.
        actions = _read_actions(members, reader, here)
        reader.count_repeats(len(actions), before, here)
        found.extend(Rule(action, constraints, duties) for action in actions)
    return tuple(found)


def _read_duties(value: object, reader: _Reader, path: str) -> tuple[Duty, ...]:
    found: list[Duty] = []
    for index, node in enumerate(_read_nodes(value, path)):
        here, before = f"{path}/{index}", (reader.nodes, reader.values)
        reader.count_node(here, 1)
        members = _read_members(node, reader, here)
        _refuse_unread_members(members, members_of.RULE - {"duty"}, here)
        _refuse_other_kind(node, reader, here)
        reader.record_parties(members, here)
        constraints = _read_constraints(members.get("constraint"), reader, f"{here}/constraint", 2)
        actions = _read_actions(members, reader, here)
        reader.count_repeats(len(actions), before, here)
        found.extend(Duty(action, constraints) for action in actions)
    return tuple(found)


_KINDS = {"permission": "Permission", "prohibition": "Prohibition", "obligation": "Duty", "duty": "Duty"}


def _refuse_other_kind(node: Mapping[str, Any], reader: _Reader, path: str) -> None:
    """Refuse a rule whose `@type` contradicts its place."""
    wanted = _KINDS[path.rsplit("/", 2)[1]]
    for one in (*members_of.as_list(node.get("@type")), *members_of.as_list(node.get("type"))):
        name = reader.name(str(one)).removeprefix(ODRL)
        if name != wanted and name in _KINDS.values():
            raise PolicyUnreadable(f"expected @type {wanted} or none here, got {name}", rule=f"{path}/@type")


def _read_obligations(value: object, reader: _Reader) -> tuple[Duty, ...]:
    reader.rules.extend(f"/obligation/{index}" for index in range(len(_read_nodes(value, "/obligation"))))
    return _read_duties(value, reader, "/obligation")


def _read_actions(members: Mapping[str, Any], reader: _Reader, path: str) -> list[str]:
    actions = [_read_action(one, reader, f"{path}/action") for one in members_of.as_list(members.get("action"))]
    if not actions:
        raise PolicyUnreadable("expected an action such as use, got a rule without one", rule=f"{path}/action")
    return actions


def _read_action(value: object, reader: _Reader, path: str) -> str:
    if isinstance(value, Mapping):
        extra = set(value) - {"@id", "@type", "@value", "type", "rdf:value", "odrl:type"}
        if extra:
            raise PolicyUnreadable(
                f"expected an action as a name, got an object with {', '.join(sorted(map(str, extra)))}; "
                "the protocol carries no refinement, write a constraint instead",
                rule=path,
                code="member_not_carried",
            )
        if value.keys() - {"@type", "type"}:
            members_of.refuse_other_members(value, path, "@type", "type")
        for key in ("@id", "@value", "rdf:value", "odrl:type", "type"):
            if key in value:
                return reader.name(_read_text(value[key], path))
    name = _read_text(value, path)
    if not name:
        raise PolicyUnreadable("expected an action as a name, got none", rule=path)
    return reader.name(name)


def _read_constraints(value: object, reader: _Reader, path: str, depth: int) -> tuple[Constraint, ...]:
    return tuple(
        _read_constraint(node, reader, f"{path}/{index}", depth) for index, node in enumerate(_read_nodes(value, path))
    )


def _read_constraint(node: Mapping[str, Any], reader: _Reader, path: str, depth: int) -> Constraint:
    reader.count_node(path, depth)
    members = _read_members(node, reader, path)
    _refuse_unread_members(members, members_of.CONSTRAINT, path)
    logic = [name for name in _LOGIC if name in members]
    atomic = [name for name in ("leftOperand", "operator", "rightOperand") if name in members]
    if len(logic) == 1 and not atomic:
        inside = _read_constraints(members[logic[0]], reader, f"{path}/{logic[0]}", depth + 1)
        if not inside:
            raise PolicyUnreadable(f"expected at least one constraint under {logic[0]}", rule=path)
        return Group(_LOGIC[logic[0]], inside)
    if logic or len(atomic) != 3:
        raise PolicyUnreadable(
            "expected leftOperand, operator and rightOperand, or exactly one of and, or, xone, andSequence; "
            f"got {', '.join((*logic, *atomic)) or 'neither'}",
            rule=path,
        )
    return _read_atom(members, reader, path)


def _read_atom(members: Mapping[str, Any], reader: _Reader, path: str) -> Atom:
    left = reader.name(_read_text(members["leftOperand"], f"{path}/leftOperand"))
    operator = reader.name(_read_text(members["operator"], f"{path}/operator")).removeprefix(ODRL)
    operator = "lteq" if operator == "term-lteq" else operator  # a typing error in the published schema
    right, many = _read_right_operand(members["rightOperand"], reader, f"{path}/rightOperand")
    if not left or not operator:
        raise PolicyUnreadable("expected a name for leftOperand and operator, got none", rule=path)
    operand = vocabulary.operand(left)
    if operand is not None and operand.type in (ValueType.IRI, ValueType.PLACE):
        right = tuple(Literal(reader.name(one.text) if ":" in one.text else one.text) for one in right)
    return Atom(left, operator, right, many)


def _read_right_operand(value: object, reader: _Reader, path: str) -> tuple[tuple[Literal, ...], bool]:
    many = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    flat: list[Literal] = []
    stack = list(reversed(members_of.as_list(value)))
    while stack:
        one = stack.pop()
        if isinstance(one, Mapping) and (inside := members_of.container_items(one, path)) is not None:
            many = True
            stack.extend(reversed(inside))
            continue
        flat.append(_read_literal(one, reader, path))
        reader.values += 1
        if reader.values > MAX_VALUES:
            raise PolicyUnreadable(f"expected at most {MAX_VALUES} values in a policy; split the list", rule=path)
    if not flat:
        raise PolicyUnreadable("expected at least one value, got an empty list", rule=path)
    return tuple(flat), many


def _read_literal(value: object, reader: _Reader, path: str) -> Literal:
    if isinstance(value, Mapping):
        if value.keys() <= {"@id", "@type"} and "@id" in value:
            return Literal(reader.name(_read_text(value, path)))
        if "@value" not in value or value.keys() - {"@value", "@type"} or isinstance(value["@value"], Mapping | list):
            raise PolicyUnreadable(f"expected @value or @id, with at most @type, got {_shorten(value)}", rule=path)
        datatype = reader.name(_read_text(value.get("@type"), path))
        inner = _read_literal(value["@value"], reader, path)
        return Literal(inner.text, "" if datatype == XSD + "string" else datatype)
    if isinstance(value, bool):
        return Literal("true" if value else "false")
    if isinstance(value, int):
        return Literal(str(value))
    if isinstance(value, float):
        return Literal(_read_float(value, path))
    if not values.is_text(value):
        raise PolicyUnreadable(
            f"expected a text of at most {values.MAX_TEXT} characters, got {_shorten(value)}", rule=path
        )
    return Literal(value)


def _read_float(value: float, path: str) -> str:
    text = repr(value)
    if "e" in text or "n" in text:  # exponents, inf, nan: not a decimal
        raise PolicyUnreadable(f'expected a plain number, got {text}; write it as a text such as "0.5"', rule=path)
    return text.removesuffix(".0")


def _read_text(value: object, path: str) -> str:
    """Return a text given plainly, as `{"@id"}`, as `{"@value"}`, or as a list of one."""
    parts = members_of.as_list(value)
    if not parts:
        return ""
    if len(parts) > 1:
        raise PolicyUnreadable(f"expected one value, got {len(parts)}", rule=path)
    one = parts[0]
    if isinstance(one, Mapping):
        members_of.refuse_other_members(one, path, "@type", "type")
        one = next((one[key] for key in ("@id", "@value", "uid", "id") if key in one), None)
    if not values.is_text(one):
        raise PolicyUnreadable(f"expected a text, got {_shorten(one)}", rule=path)
    return one


def _read_nodes(value: object, path: str) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = []
    stack = list(reversed(members_of.as_list(value)))
    while stack:
        one = stack.pop()
        if isinstance(one, Mapping) and (inside := members_of.container_items(one, path)) is not None:
            stack.extend(reversed(inside))
        elif isinstance(one, Mapping):
            found.append(one)
        else:
            raise PolicyUnreadable(f"expected objects, got {_shorten(one)}", rule=path)
        if len(found) + len(stack) > MAX_NODES:
            raise PolicyUnreadable(f"expected at most {MAX_NODES} rules and constraints; split it", rule=path)
    return found


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
