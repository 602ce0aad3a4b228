"""A catalogue that issues two types of credentials, and a member that holds them."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.catalogue.conftest import Clock
from tests.catalogue.issuer.holder import MEMBERSHIP, SENSITIVE, Holder, holding


@pytest.fixture
def clock() -> Clock:
    """Starts with the time of the machine, by which verifiers check."""
    return Clock(time.time())


@pytest.fixture
def catalogue_settings(catalogue_settings: dict[str, Any]) -> dict[str, Any]:
    return {**catalogue_settings, "issuer_types": (MEMBERSHIP, SENSITIVE)}


@pytest.fixture
async def holder() -> AsyncIterator[Holder]:
    async with holding() as made:
        yield made


@pytest.fixture
async def other() -> AsyncIterator[Holder]:
    async with holding() as made:
        yield made
