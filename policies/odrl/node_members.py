"""Classifies the members of a JSON-LD node: known, a harmless annotation, or refused by name.

A misspelt member (`constraints`, `ds:prohibition`, a term defined by an inline context) would silently widen the
policy, so it is refused. Must not know what members mean.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from policies.errors import PolicyUnreadable
from policies.model import ODRL
from policies.vocabulary import expand


def split_words(text: str) -> frozenset[str]:
    return frozenset(text.split())


POLICY = split_words("permission prohibition obligation target assigner assignee timestamp profile conflict uid")
RULE = split_words("action constraint duty target assigner assignee uid")
CONSTRAINT = split_words("leftOperand operator rightOperand and or xone andSequence uid")
# Members that would change what a rule means and have no term in the protocol's context: refused, never skipped.
LOST = split_words(
    """refinement remedy consequence inheritFrom inheritRelation inheritAllowed unit status dataType
    rightOperandReference"""
)
ODRL_KEYS = POLICY | RULE | CONSTRAINT | LOST
# They describe the text, not the use: no engine gives them another meaning.
_ANNOTATIONS = split_words("label comment title name description creator publisher created modified issued version")
# Prefixes that are often used without a definition; their members are annotations.
_ELSEWHERE = split_words("rdf rdfs owl skos schema prov foaf vcard dc dcterms edc")
# Namespaces whose members must be known, also when misspelt: ODRL, the protocol, this project's vocabulary.
_NEAR = re.compile(r"/ns/odrl|w3id\.org/+(hanse|dspace)", re.IGNORECASE)
_IRI = re.compile(r"https?://|urn:", re.IGNORECASE)
_PREFIXES_MAX, _PREFIX_MAX = 100, 255  # prefixes of an inline context; characters of a prefix's IRI
_TIMESTAMP = "https://w3id.org/dspace/2025/1/timestamp"
# Contexts whose terms are known here; documents are never fetched.
_CONTEXTS = frozenset(
    [
        "https://w3id.org/dspace/2025/1/context.jsonld",
        "https://w3id.org/dspace/2025/1/odrl-profile.jsonld",
        "http://www.w3.org/ns/odrl.jsonld",
        "https://www.w3.org/ns/odrl.jsonld",
    ]
)


def local_name(key: str, name: Callable[[str], str], path: str) -> str:
    """Return the local name of a member, empty for an annotation. `name` expands a written name to an IRI.

    Raises: PolicyUnreadable (`member_unknown`).
    """
    if key in ("@id", "id"):
        return "uid"
    if key in ("@type", "type") or (key == "@context" and not path):
        return ""
    if ":" not in key:
        if key in ODRL_KEYS:
            return key
        if key in _ANNOTATIONS:
            return ""
        raise _unknown_member(key, path)
    iri = name(key)
    if iri == _TIMESTAMP:
        return "timestamp"
    if iri.startswith(ODRL):
        return iri[len(ODRL) :]
    foreign = _IRI.match(iri) or key.partition(":")[0] in _ELSEWHERE
    if not foreign or _NEAR.search(iri):
        raise _unknown_member(key, path)
    return ""


def _unknown_member(key: str, path: str) -> PolicyUnreadable:
    return PolicyUnreadable(
        f"the member {key[:80]} is not known, and the policy could mean something else without it; expected one of "
        f"{', '.join(sorted(ODRL_KEYS - LOST))}, or a note under the full name of another vocabulary",
        rule=f"{path}/{key[:80]}",
        code="member_unknown",
    )


def container_items(node: Mapping[str, Any], path: str) -> list[Any] | None:
    """Return the items of a `@list` or `@set` node; None for any other node."""
    if "@list" not in node and "@set" not in node:
        return None
    refuse_other_members(node, path)
    return as_list(next(iter(node.values())))


def refuse_other_members(node: Mapping[str, Any], path: str, *allowed: str) -> None:
    """Refuse a node that has members other than its value and those in `allowed`."""
    if len(node.keys() - set(allowed)) != 1:
        raise PolicyUnreadable(
            f"expected one of {', '.join(sorted(node, key=str))} alone, got all of them; keep one", rule=path or "/"
        )


def as_list(value: object) -> list[Any]:
    """Return a list as it is, a single value as a list of one, and None as an empty list."""
    if value is None:
        return []
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return list(value)
    return [value]


def read_prefixes(context: object) -> dict[str, str]:
    """Return the prefixes that an inline context defines; any other definition is refused.

    Raises: PolicyUnreadable for other definitions, more than 100 prefixes, or IRIs over 255 characters: every name in
    the policy could grow by such an IRI.
    """
    found: dict[str, str] = {}
    for part in as_list(context):
        if isinstance(part, Mapping):
            for key, value in part.items():
                if not _is_harmless(key, value):
                    found[key] = _read_prefix(key, value)
        elif not isinstance(part, str) or part not in _CONTEXTS:
            raise PolicyUnreadable(
                f"expected a context that is known here ({', '.join(sorted(_CONTEXTS))}) or prefixes, got "
                f"{str(part)[:200]}; contexts are not fetched. Leave it out and write full names",
                rule="/@context",
                code="context_unknown",
            )
    if len(found) > _PREFIXES_MAX or any(len(iri) > _PREFIX_MAX for iri in found.values()):
        raise PolicyUnreadable(
            f"expected at most {_PREFIXES_MAX} prefixes in an inline context, each for at most {_PREFIX_MAX} "
            "characters, got more; write full names where they are used",
            rule="/@context",
        )
    return found


def _is_harmless(key: object, value: object) -> bool:
    return key == "@version" or (key == "@vocab" and value == ODRL)


def _read_prefix(key: object, value: object) -> str:
    if isinstance(value, Mapping) and set(value) <= {"@id", "@prefix"}:
        value = value.get("@id")
    plain = isinstance(key, str) and not key.startswith("@") and key not in ODRL_KEYS
    if not plain or not isinstance(value, str) or not value.endswith(("/", "#", ":")):
        raise PolicyUnreadable(
            f"expected only prefixes in an inline context (names for IRIs that end in #, / or :), got {str(key)[:80]}; "
            "write the full name where it is used",
            rule="/@context",
            code="context_unknown",
        )
    return expand(value)
