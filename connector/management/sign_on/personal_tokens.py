"""Personal access tokens: a caller makes them for its own programs, with some of its own scopes and an end.

Only the SHA-256 of a token is stored, so its text is shown once. A personal access token cannot make others, and never
has the scope admin. It ends with the token that made it.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field

from connector.errors import Absent, Forbidden, Invalid, Limited, Unproven, check_harmless
from connector.events import TokenIssued, TokenRevoked
from connector.json_number import JSON_NUMBER
from connector.management.sign_on.auth import MAKER_PREFIX, SCOPES, Caller, Tokens, digest_of
from connector.store import Store, Transaction
from connector.store.tables import ApiToken

PREFIX = "hanse_pat_"  # lets scanners for secrets find a token in code
DAYS_MAX = 366
_OWNED_MAX = 50
_DAY_S = 86_400
PERSONAL_SCOPES = tuple(scope for scope in SCOPES if scope != "admin")


class NewPersonalToken(BaseModel):
    model_config = ConfigDict(extra="forbid")

    label: str = Field(min_length=1, max_length=64, description="What it is for, e.g. the name of a program.")
    scopes: list[Annotated[str, Field(max_length=16)]] = Field(
        max_length=8, description=f"Some of {', '.join(PERSONAL_SCOPES)} that the caller has."
    )
    days: Annotated[float, Field(gt=0, le=DAYS_MAX), JSON_NUMBER] = Field(30.0, description="Days until it ends.")


class PersonalToken(BaseModel):
    id: str
    label: str
    scopes: list[str]
    created_at: float
    expires_at: float | None
    last_used_at: float | None


class PersonalTokenText(PersonalToken):
    """A new token. The text is shown this once."""

    token: str


class PersonalTokens:
    """The personal access tokens of one connector's management API."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def issue(self, caller: Caller, new: NewPersonalToken) -> tuple[ApiToken, str]:
        """Make a token for the caller; return its row and its text, which is never shown again.

        Raises: Forbidden for a caller that uses a personal access token; Invalid for a scope that the caller lacks;
        Limited for too many tokens; Unproven if the caller's own token has just ended.
        """
        _check_new(caller, new)
        text = PREFIX + secrets.token_urlsafe(32)

        def work(tx: Transaction) -> ApiToken:
            tx.tokens.lock_exclusively()  # the caller's token must not end meanwhile, nor the limit be passed
            _check_owner(tx, caller)
            row = _make_row(caller, new, text, now=tx.now)
            tx.tokens.add(row)
            tx.publish(
                TokenIssued(actor=caller.name, detail={"token": row.name, "scopes": new.scopes, "personal": True})
            )
            return row

        return await self._store.write(work), text

    async def list(self, caller: Caller) -> Sequence[ApiToken]:
        return await self._store.read(lambda tx: tx.tokens.list_owned(caller.owner))

    async def revoke(self, caller: Caller, token: str) -> None:
        """End a token of the caller at once. Raises: Absent if the caller has no such token."""

        def work(tx: Transaction) -> None:
            row = next((row for row in tx.tokens.list_owned(caller.owner) if row.name == token), None)
            if row is None:
                raise Absent("you have no personal access token with this id; `hanse token mine` lists yours")
            tx.tokens.remove(row)
            tx.publish(TokenRevoked(actor=caller.name, detail={"token": token, "personal": True}))

        await self._store.write(work)


def router(tokens: Tokens, personal: PersonalTokens) -> APIRouter:
    routes = APIRouter(tags=["system"])
    anyone = Depends(tokens.require(""))

    @routes.get("/personal-tokens", summary="Personal access tokens of the caller, without their text")
    async def list_own(caller: Caller = anyone) -> list[PersonalToken]:
        return [PersonalToken(**describe(row)) for row in await personal.list(caller)]

    @routes.post(
        "/personal-tokens", status_code=201, summary="Make a personal access token; its text is shown this once"
    )
    async def issue(new: NewPersonalToken, caller: Caller = anyone) -> PersonalTokenText:
        row, text = await personal.issue(caller, new)
        return PersonalTokenText(**describe(row), token=text)

    @routes.delete("/personal-tokens/{token}", status_code=204, summary="End a personal access token of the caller")
    async def revoke(token: str, caller: Caller = anyone) -> None:
        await personal.revoke(caller, token)

    return routes


def describe(row: ApiToken) -> dict[str, object]:
    """Return what may be shown of a personal access token."""
    return {
        "id": row.name,
        "label": row.label or "",
        "scopes": row.scopes,
        "created_at": row.created_at,
        "expires_at": row.expires_at,
        "last_used_at": row.last_used_at,
    }


def _check_new(caller: Caller, new: NewPersonalToken) -> None:
    if caller.token or caller.workload:
        raise Forbidden("only a person or an ordinary token makes personal access tokens; log in to make one")
    allowed = [scope for scope in PERSONAL_SCOPES if caller.may(scope)]
    unfit = sorted(set(new.scopes) - set(allowed))
    if unfit or not new.scopes:
        raise Invalid(f"expected scopes among {', '.join(allowed) or 'none'}, got {', '.join(unfit) or 'none'}")
    check_harmless(label=new.label)


def _check_owner(tx: Transaction, caller: Caller) -> None:
    owner = caller.owner
    if owner.startswith(MAKER_PREFIX) and tx.tokens.find_by_name(owner.removeprefix(MAKER_PREFIX)) is None:
        raise Unproven("this token has just ended; ask an administrator for a new one")
    if len(tx.tokens.list_owned(owner)) >= _OWNED_MAX:
        raise Limited(f"expected at most {_OWNED_MAX} personal access tokens, you have as many; end some first")


def _make_row(caller: Caller, new: NewPersonalToken, text: str, *, now: float) -> ApiToken:
    return ApiToken(
        name=f"pat-{secrets.token_hex(8)}",
        digest=digest_of(text),
        scopes=sorted(set(new.scopes)),
        created_at=now,
        expires_at=now + new.days * _DAY_S,
        owner=caller.owner,
        owner_name=caller.name,
        label=new.label,
        last_used_at=None,
    )
