"""docs/data-plane.md names what a client may send, and what it may be answered."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from connector.dataplane import job_builder, noise_budget, read_request
from connector.dataplane.http import export_formats, routes
from connector.dataplane.http.routes import _ROWS_PARAMETERS
from connector.dataplane.http.schemas import Envelope, PlanForm

PAGE = (Path(__file__).parents[3] / "docs" / "data-plane.md").read_text("utf-8")
SOURCES = [inspect.getsource(part) for part in (read_request, export_formats, routes, job_builder, noise_budget)]
CODES = sorted({code for source in SOURCES for code in re.findall(r'code="(\w+)"', source)})


@pytest.mark.parametrize("name", sorted({*Envelope.model_fields, *PlanForm.model_fields}))
def test_a_member_of_a_body_is_on_the_page(name: str) -> None:
    assert f'"{name}"' in PAGE


@pytest.mark.parametrize("name", _ROWS_PARAMETERS)
def test_a_parameter_is_on_the_page(name: str) -> None:
    assert f"`{name}=" in PAGE


@pytest.mark.parametrize("code", CODES)
def test_a_code_is_on_the_page(code: str) -> None:
    assert f"`{code}`" in PAGE
