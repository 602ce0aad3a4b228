"""Read receipts on the management API: readers report each finished read, and the log records its result."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field

from connector.json_number import JSON_NUMBER
from connector.management.sign_on.auth import Caller, Tokens
from connector.usage import receipt_log
from connector.usage.receipt_log import TOGETHER_MAX, ReceiptLog

_NUMBER_MAX = 2**53  # larger numbers are not exact in the log
_Count = Annotated[int, Field(ge=0, le=_NUMBER_MAX), JSON_NUMBER]
_Id = Annotated[str, Field(pattern=r"^[!-~]{0,128}$")]  # an owner's own choice
_Word = Annotated[str, Field(pattern=r"^[!-~]{0,64}$")]
_Digest = Annotated[str, Field(pattern=r"^[!-~]{0,200}$")]


class ReportedEndBody(BaseModel):
    """The content of the owner's end record."""

    model_config = ConfigDict(extra="forbid")

    status: _Word = ""
    rows: _Count | None = None
    bytes: _Count | None = None
    digest: _Digest = ""
    code: _Word = ""


class EndedRead(BaseModel):
    """A read that has ended. A repeated report with the same `id` counts once."""

    model_config = ConfigDict(extra="forbid")

    id: str = Field(pattern=r"^[0-9a-f]{32}$", description="Chosen at random by the reader.")
    agreement: str = Field(max_length=255, pattern=r"^[^\x00]*$")
    transfer: str = Field("", max_length=255, pattern=r"^[^\x00]*$")
    read: _Id = Field("", description="The read's id as its owner reports it (`hanse-read`, or `query` at its end).")
    rows: _Count = Field(description="Rows that came.")
    seconds: _Count | None = Field(None, description="How long ago the read began.")
    code: _Word = Field("", description="Why no end record came.")
    digest: _Digest = Field(
        "", description="Computed by the reader over what came before the end record; empty where it was not computed."
    )
    end: ReportedEndBody | None = None

    def ended(self) -> receipt_log.ReadReceipt:
        told = None if self.end is None else receipt_log.ReportedEnd(**self.end.model_dump())
        return receipt_log.ReadReceipt(**self.model_dump(exclude={"end"}), end=told)


class EndedReads(BaseModel):
    model_config = ConfigDict(extra="forbid")

    ends: list[EndedRead] = Field(min_length=1, max_length=TOGETHER_MAX)


class RecordedView(BaseModel):
    """The number of new log records, and the ids of reads under an unknown agreement."""

    recorded: int
    unknown: list[str]


def router(kept: ReceiptLog, tokens: Tokens) -> APIRouter:
    routes = APIRouter(prefix="/receipts", tags=["transfers"])
    consumer = Depends(tokens.require("consume"))

    @routes.post("", summary="Report ended reads at owners, for our own log")
    async def record(over: EndedReads, caller: Caller = consumer) -> RecordedView:
        found = await kept.record([one.ended() for one in over.ends], by=caller.name)
        return RecordedView(recorded=found.recorded, unknown=list(found.unknown))

    return routes
