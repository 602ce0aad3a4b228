"""A strict consumer: copies a published offer word for word and compares the agreement with it as Eclipse EDC does.

Written from the behaviour of EDC 0.15, not from its text. A policy is expanded with the context and read into
a tree; of two trees everything counts, also order, `profile`, the assigner and members of other vocabularies, but not
the type, target and assignee. Its request leaves out `profile` and members of other vocabularies, has empty lists of
rules, no datatypes, and each list of values as one text.
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

Json = dict[str, Any]
ODRL = "http://www.w3.org/ns/odrl/2/"
_DSPACE = "https://w3id.org/dspace/2025/1/"
_PREFIXES = {
    "odrl": ODRL,
    "dspace": _DSPACE,
    "dcat": "http://www.w3.org/ns/dcat#",
    "dct": "http://purl.org/dc/terms/",
    "xsd": "http://www.w3.org/2001/XMLSchema#",
}
_CONTEXT: Json = json.loads((files("connector.dsp") / "schemas" / "context" / "odrl.jsonld").read_text())["@context"]
_AGREEMENT = {"timestamp": f"{_DSPACE}timestamp"}  # the protocol's own member of an agreement, no part of its policy
_RULES = {"permission": "permissions", "prohibition": "prohibitions", "obligation": "obligations"}
_LOGIC = ("and", "or", "xone")


def tree(wire: Json) -> Json:
    """The policy as it is compared, its target and assignee left out."""
    node = _expanded(wire)
    found: Json = {name: [] for name in _RULES.values()} | {"profiles": [], "assigner": "", "extensible": {}}
    for key, values in node.items():
        local = key.removeprefix(ODRL)
        if local in _RULES and key.startswith(ODRL):
            found[_RULES[local]] = [_rule(one) for one in values]
        elif key == f"{ODRL}profile":
            found["profiles"] = [one["@id"] for one in values]
        elif key == f"{ODRL}assigner":
            (found["assigner"],) = (one["@id"] for one in values)
        elif key not in (f"{ODRL}target", f"{ODRL}assignee", _AGREEMENT["timestamp"]):
            found["extensible"][key] = values
    return found


def request_of(offer: Json, *, offer_id: str, target: str, **more: Any) -> Json:
    """The offer in a request, as EDC 0.15 writes it out of its tree."""
    read = tree(offer)
    lists = {name: [_written(rule) for rule in read[known]] for name, known in _RULES.items()}
    return {"@type": "Offer", "@id": offer_id, "target": target, **lists, **more}


def _expanded(node: Json) -> Json:
    """JSON-LD expansion, as far as policies need it: undefined members are dropped, values are lists of objects."""
    found: Json = {}
    for key, value in node.items():
        iri, kind = _term(key)
        if iri:
            values = value if isinstance(value, list) else [value]
            found[iri] = [_value(one, kind) for one in values]
    return found


def _term(key: str) -> tuple[str, str]:
    if key.startswith("@"):
        return "", ""
    if key in _AGREEMENT:
        return _AGREEMENT[key], ""
    defined = _CONTEXT.get(key)
    if isinstance(defined, dict):
        return _iri(defined["@id"]), defined.get("@type", "")
    return _iri(defined or key), ""


def _iri(name: str) -> str:
    """The IRI of a compact name, or the name itself if it is absolute; else nothing."""
    prefix, colon, local = name.partition(":")
    if not colon:
        return ""
    return _PREFIXES[prefix] + local if prefix in _PREFIXES else name


def _value(value: Any, kind: str) -> Json:
    if isinstance(value, dict):
        if "@value" in value:
            return {"@value": value["@value"], "@type": _iri(value.get("@type", ""))}
        if "@id" in value and value.keys() <= {"@id", "@type"}:
            return {"@id": _iri(value["@id"])}
        return _expanded(value)
    if kind == "@vocab":
        return {"@id": _term(value)[0]}
    return {"@id": _iri(value) or value} if kind == "@id" else {"@value": value}


def _rule(node: Json) -> Json:
    (action,) = node[f"{ODRL}action"]
    return {
        "action": action["@id"],
        "constraints": [_constraint(one) for one in node.get(f"{ODRL}constraint", [])],
        "duties": [_rule(one) for one in node.get(f"{ODRL}duty", [])],
    }


def _constraint(node: Json) -> Json:
    for name in _LOGIC:
        if ODRL + name in node:
            return {name: [_constraint(one) for one in node[ODRL + name]]}
    (left,), (operator,) = node[f"{ODRL}leftOperand"], node[f"{ODRL}operator"]
    right = [one.get("@value", one.get("@id")) for one in node[f"{ODRL}rightOperand"]]
    return {"left": left["@id"], "operator": operator["@id"], "right": right[0] if len(right) == 1 else right}


def _written(rule: Json) -> Json:
    wire: Json = {"action": rule["action"]}
    if rule["constraints"]:
        wire["constraint"] = [_written_constraint(one) for one in rule["constraints"]]
    if rule["duties"]:
        wire["duty"] = [_written(one) for one in rule["duties"]]
    return wire


def _written_constraint(constraint: Json) -> Json:
    for name in _LOGIC:
        if name in constraint:
            return {name: [_written_constraint(one) for one in constraint[name]]}
    right = constraint["right"]
    if isinstance(right, list):
        right = json.dumps([{"@value": one} for one in right], separators=(",", ":"))
    return {
        "leftOperand": constraint["left"],
        "operator": constraint["operator"].removeprefix(ODRL),
        "rightOperand": right,
    }
