"""Where a body of JSON is to have a number, `true` and `"0.1"` are none: on every form, also those added later."""

from __future__ import annotations

import importlib
import pkgutil
import typing
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

import connector
from connector.dataplane.http.schemas import Envelope, parse_envelope
from connector.errors import Invalid
from connector.federation import contract_summary
from tests.connector.console.support import Console, opened

PACKAGES = ("connector.management", "connector.dataplane", "connector.federation")


def forms() -> Iterator[type[BaseModel]]:
    """Every model that reads what others write: those that forbid unknown members, and an owner's summary."""
    for package in PACKAGES:
        for found in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
            if found.name.rpartition(".")[2] != "rows":  # a program
                importlib.import_module(found.name)
    waiting = [BaseModel]
    while waiting:
        for kind in waiting.pop().__subclasses__():
            waiting.append(kind)
            read = kind.model_config.get("extra") == "forbid" or kind.__module__ == contract_summary.__name__
            if read and kind.__module__.startswith(connector.__name__):
                yield kind


def is_number(kind: Any) -> bool:
    """Whether a field is a number, or none."""
    return kind in (int, float) or any(map(is_number, typing.get_args(kind)[:2]))


FIELDS = sorted(
    {
        (form.__module__, form.__name__, name): (form, name)
        for form in forms()
        for name, field in form.model_fields.items()
        if is_number(field.annotation) and typing.get_origin(field.annotation) not in (dict, list)
    }.items()
)


def test_the_numbers_of_policies_and_questions_are_among_those_tried() -> None:
    tried = {(form.__name__, name) for _, (form, name) in FIELDS}
    assert tried >= {
        ("Envelope", "epsilon"), ("Envelope", "fq"), ("RequestLimits", "deadline_ms"), ("RequestLimits", "rows"),
        ("QueryRequest", "epsilon"), ("PolicyCase", "at"), ("ContractGrid", "epsilon"), ("ContractGrid", "min_group"),
        ("GridAxis", "width"), ("NewToken", "days"), ("EndedRead", "rows"),
    }  # fmt: skip


@pytest.mark.parametrize("value", [True, False, "1", "0.1", "NaN"])
@pytest.mark.parametrize(("form", "name"), [one for _, one in FIELDS], ids=[".".join(key[1:]) for key, _ in FIELDS])
def test_a_boolean_or_a_text_is_no_number(form: type[BaseModel], name: str, value: Any) -> None:
    with pytest.raises(ValidationError) as refused:
        form.model_validate({name: value})
    (found,) = [one for one in refused.value.errors() if one["loc"][0] == name]
    assert (found["type"], "expected a number, got" in found["msg"]) == ("number_expected", True)


@pytest.mark.parametrize("value", ["true", '"0.1"'])
def test_a_query_with_an_epsilon_that_is_no_number_is_refused(value: str) -> None:
    with pytest.raises(Invalid, match="epsilon: expected a number, got"):
        parse_envelope(f'{{"sql": "SELECT 1", "epsilon": {value}}}'.encode())


@pytest.mark.parametrize(("value", "read"), [("0.5", 0.5), ("1", 1.0), ("1e-3", 0.001), ("null", None)])
def test_a_number_stays_one(value: str, read: float | None) -> None:
    found: Envelope = parse_envelope(f'{{"sql": "SELECT 1", "epsilon": {value}}}'.encode())
    assert found.epsilon == read


async def test_the_management_api_says_what_it_expected(tmp_path: Any) -> None:
    async with opened(tmp_path) as desk:
        made: Console = desk
        headers = {"authorization": f"Bearer {await made.token('consume')}"}
        body = {"sql": "SELECT 1", "epsilon": True}
        answer = await made.http.post("/api/v1/queries", json=body, headers=headers)
    assert (answer.status_code, answer.json()["detail"]) == (
        400, "epsilon: expected a number, got true; write a number such as 5 or 0.5, not a text or a truth value",
    )  # fmt: skip
