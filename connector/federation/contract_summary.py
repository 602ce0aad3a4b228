"""Validated contract summary of an agreement (`GET /data/v1/contract`), as far as the planner needs it. Pure.

The summary comes from another participant, so every member is checked against its type.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError, field_validator

from connector.json_number import JSON_NUMBER
from policies.evaluation.values import is_whole

_Count = Annotated[int, Field(ge=0, lt=2**63), JSON_NUMBER]
_Tenths = Annotated[int, Field(ge=0, le=90, multiple_of=10), JSON_NUMBER]  # per cent
_Number = Annotated[float, Field(allow_inf_nan=False), JSON_NUMBER]


class ShownColumn(BaseModel):
    """A column that the agreement shows."""

    name: str
    type: str

    @field_validator("name", "type")
    @classmethod
    def _is_text(cls, text: str) -> str:
        if not is_whole(text):
            raise ValueError("expected text of whole characters, got half of a surrogate pair")
        return text

    @field_validator("name")
    @classmethod
    def _is_one_column(cls, name: str) -> str:
        if name == "*":
            raise ValueError("expected the name of one column, got '*'; its owner must rename it")
        return name


class GridAxis(BaseModel):
    """A dimension or a measure. `width`: the bin width of a binned dimension."""

    column: str
    width: _Number | None = None


class LeftOutShare(BaseModel):
    """Lower bounds, in per cent, of the rows and groups that an owner's grid leaves out."""

    rows: _Tenths
    groups: _Tenths


class ContractGrid(BaseModel):
    """The aggregates that an aggregate-only contract permits."""

    dimensions: tuple[GridAxis, ...]
    measures: tuple[GridAxis, ...]
    min_group: _Count
    entity: str | None
    epsilon: _Number | None = None
    left_out: LeftOutShare | None = None


class Contract(BaseModel):
    """One permitted use under the agreement."""

    actions: tuple[str, ...]
    purposes: tuple[str, ...]
    columns: tuple[ShownColumn, ...]
    aggregate: ContractGrid | None
    joins: tuple[str, ...] | None
    limits: Mapping[str, Any] = Field(default_factory=dict)
    shares_keys: Any = None  # anything but True means no


class Summary(BaseModel):
    """An agreement as its owner describes it now."""

    owner: str
    name: str
    version: str = ""
    rows: _Count | None
    takes_keys: bool = False
    contracts: tuple[Contract, ...] = Field(min_length=1)


def parse_summary(wire: Mapping[str, Any]) -> Summary:
    """Return the validated summary. Raises: ValueError, which names the first member that does not fit."""
    try:
        return Summary.model_validate(wire)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
