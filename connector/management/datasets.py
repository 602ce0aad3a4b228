"""Datasets and running registrations on the management API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from connector import raw_access
from connector.datasets.registration import ColumnNote, Description, Registration, RegistrationProgress
from connector.datasets.registry import Registry
from connector.datasets.sources import SOURCES, find_position_clash, remote_source
from connector.errors import Absent
from connector.events import (
    DatasetDescribed,
    DatasetRegistered,
    DatasetVersioned,
    RawDataViewed,
    ReadEnded,
    ReadStarted,
)
from connector.management.notify.long_poll import run_unless_gone
from connector.management.offers import check_party
from connector.management.sign_on.auth import Caller, Tokens
from connector.offers.preview import OwnersView, PreviewRequest
from connector.store.tables import DatasetVersion, RegisteredDataset


class NewDataset(BaseModel):
    """A dataset to register from files in an allowed directory, a store or a database."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(max_length=63, description="Name in SQL and addresses: small letters, digits and _.")
    path: str = Field(
        max_length=4096, description="File or directory under one of HANSE_SOURCE_ROOTS; s3://bucket/prefix."
    )
    kind: str = Field("", max_length=32, description=f"{', '.join(SOURCES)}; empty: by the path.")
    options: dict[str, Any] = Field(default_factory=dict, description="Options of the kind of source.")
    id: str = Field("", max_length=255, description="Identifier (IRI); empty: urn:hanse:<participant>:<name>.")
    title: str = Field("", max_length=300)
    description: str = Field("", max_length=10_000)
    keywords: list[Annotated[str, Field(max_length=100)]] = Field(default_factory=list, max_length=100)
    theme: str = Field("", max_length=200)
    license: str = Field("", max_length=300)
    citation: str = Field("", max_length=2_000, description="How to cite the dataset.")
    contact: str = Field("", max_length=300, description="Whom to ask: a name, mail address or URL.")
    accept: bool = Field(
        False,
        description="Register although it differs by few units from a removed dataset of this name.",
    )


class DatasetTexts(BaseModel):
    """The texts on a dataset, all of them: an empty one is removed."""

    model_config = ConfigDict(extra="forbid")

    title: str = Field("", max_length=300, description="Empty: the dataset's name.")
    description: str = Field("", max_length=10_000)
    keywords: list[Annotated[str, Field(max_length=100)]] = Field(default_factory=list, max_length=100)
    theme: str = Field("", max_length=200)
    license: str = Field("", max_length=300)
    citation: str = Field("", max_length=2_000, description="How to cite the dataset.")
    contact: str = Field("", max_length=300, description="Whom to ask: a name, mail address or URL.")

    def to_description(self) -> Description:
        return Description(**{**self.model_dump(), "keywords": tuple(self.keywords)})


class ColumnTexts(BaseModel):
    """What the owner says about a column. Readers see it where an offer shows them the column."""

    model_config = ConfigDict(extra="forbid")

    description: str = Field("", max_length=1_000)
    unit: str = Field("", max_length=60, description="Of its values, such as mmHg.")
    personal: bool = Field(False, description="Whether it is personal data.")

    def to_note(self) -> ColumnNote:
        return ColumnNote(**self.model_dump())


class NewVersion(BaseModel):
    """New files for a dataset; the schema stays."""

    model_config = ConfigDict(extra="forbid")

    path: str = Field("", max_length=4096, description="Empty: from where it came the last time.")
    accept: bool = Field(False, description="Store the version although it does not fit offers or agreements.")


class ColumnView(BaseModel):
    """A column of a dataset."""

    name: str
    type: str
    description: str = ""
    unit: str = ""
    personal: bool = False
    statistics: dict[str, Any] | None = Field(
        description="Least and greatest value, distinct values, share of nulls, bytes. They are of raw data: only for "
        "a token with the scope owner, null for any other."
    )

    @property
    def has_note(self) -> bool:
        """Whether the owner says more of it than name and type."""
        return bool(self.description or self.unit or self.personal)


class DatasetView(BaseModel):
    """A dataset as its owner sees it. Values from the data are only for tokens with the scope owner."""

    id: str
    name: str
    title: str
    description: str
    keywords: list[str]
    theme: str
    license: str
    citation: str
    contact: str
    version: str
    rows: int
    bytes: int
    columns: list[ColumnView]
    kind: str
    files: list[str] = Field(
        description="The owner's, also where a conversion is what is read. Folders may name values of columns: empty "
        "without the scope owner."
    )
    report: dict[str, Any] | None = Field(description="Of a conversion. Null without the scope owner.")
    note: str = Field(
        "", description="What its owner should know of how it can be read. Empty without the scope owner."
    )
    changes: dict[str, Any] | None = Field(
        None, description="What is another than in the version before. Null without the scope owner."
    )
    affected: list[dict[str, str]] = Field(description="By the version. Empty without the scope owner.")
    created_at: float
    unchanged: bool | None = Field(
        None, description="Of one dataset: whether its files are what was registered; reads of others are refused."
    )


def view(row: RegisteredDataset, version: DatasetVersion, *, raw: bool, unchanged: bool | None = None) -> DatasetView:
    """Return a dataset, with values from the data only if `raw`."""
    return DatasetView(
        id=row.id,
        name=row.name,
        title=row.title,
        description=row.description,
        keywords=row.keywords,
        theme=row.theme,
        license=row.license,
        citation=row.citation,
        contact=row.contact,
        version=row.version,
        rows=version.profile["rows"],
        bytes=version.profile["bytes"],
        columns=_columns(row, version, raw=raw),
        kind=version.source["asked_kind"],
        created_at=row.created_at,
        unchanged=unchanged,
        **(_raw(version) if raw else {"files": [], "report": None, "affected": []}),
    )


def _columns(row: RegisteredDataset, version: DatasetVersion, *, raw: bool) -> list[ColumnView]:
    known, notes = version.profile["columns"], row.column_notes
    return [
        ColumnView(
            name=one["name"],
            type=one["type"],
            statistics=known.get(one["name"], {}) if raw else None,
            **notes.get(one["name"], {}),
        )
        for one in version.schema
    ]


def _raw(version: DatasetVersion) -> dict[str, Any]:
    """Return the fields with values from the data. Names of files and folders may be such values, too."""
    raw_access.check()
    changes = version.source.get("changes")
    return {
        "files": _files(version.source),
        "report": version.source["report"],
        "note": _note(version),
        "changes": changes,
        "affected": (changes or {}).get("affected", []),
    }


def _note(version: DatasetVersion) -> str:
    told = []
    if column := find_position_clash(version.source["kind"], version.schema):
        told.append(
            f"a column is called {column}, as the engine calls a row's place: rows come as one stream that no loader "
            "divides, and that begins anew after a lost connection; rename the column where that matters"
        )
    if others := version.source.get("others"):
        told.append(
            f"left out of the directory for their endings, which are none of its kind: {others['count']}, the first of "
            f"which is {others['first']!r}; where they are data, give them such an ending, or remove them"
        )
    return "; ".join(told)


def _files(source: Mapping[str, Any]) -> list[str]:
    """Return the files that the owner registered, also where a converted file is read instead."""
    if source["report"] is not None and remote_source(source["asked_kind"]) is not None:
        return [source["asked_path"]]  # a table of a database: its draft is gone
    return [file["path"] for file in (source["report"] or source)["files"]]


def router(registry: Registry, owners_view: OwnersView, tokens: Tokens) -> APIRouter:
    routes = APIRouter(prefix="/datasets", tags=["datasets"])
    owner = Depends(tokens.require("owner"))
    reader = Depends(tokens.require_raw("read"))
    registrar = Depends(tokens.require_raw("owner", DatasetRegistered))
    renewer = Depends(tokens.require_raw("owner", DatasetVersioned))
    describer = Depends(tokens.require_raw("owner", DatasetDescribed))
    viewer = Depends(tokens.require_raw("owner", RawDataViewed, ReadStarted, ReadEnded))

    @routes.post("", status_code=201, summary="Register a dataset; it is hidden from consumers until it has an offer")
    async def register(new: NewDataset, request: Request, caller: Caller = registrar) -> DatasetView:
        """This may take long: `GET /registrations/{name}` shows the progress. It stops when the client leaves."""
        about = Description(
            title=new.title,
            description=new.description,
            keywords=tuple(new.keywords),
            theme=new.theme,
            license=new.license,
            citation=new.citation,
            contact=new.contact,
        )
        asked = Registration(name=new.name, path=new.path, kind=new.kind, options=new.options, id=new.id, about=about)
        return view(
            *await run_unless_gone(request, registry.register(asked, by=caller.name, accept=new.accept)), raw=True
        )

    @routes.get("", summary="Registered datasets, in order of their id")
    async def list_datasets(
        after: str = "", limit: Annotated[int, Query(ge=1, le=1000)] = 100, caller: Caller = reader
    ) -> list[DatasetView]:
        raw = caller.may("owner")
        return [view(*pair, raw=raw) for pair in await registry.page(after=after, limit=limit)]

    @routes.get("/{name}/preview", summary="What a participant would see of it, through the real gate")
    async def preview(
        name: str,
        participant: Annotated[str, Query(alias="as", max_length=2_048, description="DID of the participant.")],
        offer: Annotated[str, Query(max_length=255, description="Empty: the first that is for it.")] = "",
        action: Annotated[str, Query(max_length=200)] = "ds:query",
        purpose: Annotated[str, Query(max_length=1_024)] = "",
        application: Annotated[str, Query(max_length=1_024)] = "",
        caller: Caller = viewer,
    ) -> dict[str, Any]:
        said = {"participant": check_party(participant), "offer": offer, "action": action, "purpose": purpose}
        return await owners_view.preview(name, PreviewRequest(**said, application=application), by=caller.name)

    @routes.get("/{name:path}", summary="One dataset, by name or id")
    async def get(name: str, caller: Caller = reader) -> DatasetView:
        row, version = await registry.get(name)
        return view(row, version, raw=caller.may("owner"), unchanged=await registry.is_unchanged(version))

    @routes.post("/{name}/versions", status_code=201, summary="Add a version from new files")
    async def renew(name: str, new: NewVersion, request: Request, caller: Caller = renewer) -> DatasetView:
        work = registry.renew(name, new.path, by=caller.name, accept=new.accept)
        return view(*await run_unless_gone(request, work), raw=True)

    @routes.put("/{name}/texts", summary="Replace title, description, keywords, theme and licence")
    async def describe(name: str, texts: DatasetTexts, caller: Caller = describer) -> DatasetView:
        return view(*await registry.describe(name, texts.to_description(), by=caller.name), raw=True)

    @routes.put("/{name}/columns", summary="Replace what is said about columns; columns that are not named keep it")
    async def describe_columns(
        name: str, columns: dict[Annotated[str, Field(max_length=1_000)], ColumnTexts], caller: Caller = describer
    ) -> DatasetView:
        notes = {column: texts.to_note() for column, texts in columns.items()}
        return view(*await registry.describe_columns(name, notes, by=caller.name), raw=True)

    @routes.delete("/{name:path}", status_code=204, summary="Remove a dataset without offers and agreements")
    async def remove(name: str, caller: Caller = owner) -> None:
        await registry.remove(name, by=caller.name)

    return routes


class RegistrationView(BaseModel):
    """A registration or new version of this process, running or among the last that ended."""

    name: str
    path: str
    by: str
    state: str = Field(
        description="finding, converting, checking, digesting, counting, storing; registered, refused or stopped."
    )
    files: int = Field(description="0 until the files are found.")
    done: int = Field(description="Files that are done in this stage.")
    started_at: float
    ended_at: float | None
    code: str
    reason: str


def registration_view(progress: RegistrationProgress) -> RegistrationView:
    return RegistrationView(
        name=progress.asked.name,
        path=progress.asked.path,
        by=progress.by,
        state=progress.state,
        files=progress.files,
        done=progress.done,
        started_at=progress.started_at,
        ended_at=progress.ended_at,
        code=progress.error.code if progress.error else "",
        reason=progress.error.message if progress.error else "",
    )


def registrations_router(registry: Registry, tokens: Tokens) -> APIRouter:
    routes = APIRouter(prefix="/registrations", tags=["datasets"])
    owner = Depends(tokens.require("owner"))

    @routes.get("", summary="Registrations that run, and the last that ended")
    async def list_registrations(_: Caller = owner) -> list[RegistrationView]:
        return [registration_view(progress) for progress in registry.under_way.recent()]

    @routes.get("/{name}", summary="How far a registration is")
    async def get_registration(name: str, _: Caller = owner) -> RegistrationView:
        found = registry.under_way.find(name)
        if found is None:
            raise Absent(f"no registration of {name[:64]!r} runs or has ended of late")
        return registration_view(found)

    @routes.delete("/{name}", status_code=204, summary="Stop a registration; nothing of it is kept")
    async def stop_registration(name: str, _: Caller = owner) -> None:
        if not await registry.under_way.stop(name):
            raise Absent(f"no registration of {name[:64]!r} runs that could be stopped")

    return routes
