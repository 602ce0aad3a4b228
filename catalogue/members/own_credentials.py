"""The operator's own credentials, which members' connectors query when the crawler visits them.

They are files in a folder, each with a credential as a JWT, read at each query: a renewed file counts at once. What is
not a credential about the operator that is valid now is logged and left out. Verifiers check the rest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from pathlib import Path

from connector.errors import Unproven
from connector.identity.credentials.credential import CREDENTIAL_MAX, Credential, read_credential
from connector.identity.credentials.scopes import Scope
from connector.identity.signed_jwt import ReadJwt
from connector.telemetry import logger

_FILES_MAX = 16
_log = logger("credentials")


class OwnCredentials:
    """The credentials about `did` in a folder."""

    def __init__(self, folder: Path, *, did: str) -> None:
        self._folder, self._did = folder, did

    async def find(self, scopes: Collection[Scope], now: float) -> list[ReadJwt]:
        """The credentials within the scopes that are valid now."""
        held = await asyncio.to_thread(self._read_all, now) if scopes else []
        return [one.jwt for one in held if any(scope.covers(one.id, one.types) for scope in scopes)]

    def _read_all(self, now: float) -> list[Credential]:
        found = []
        for path in sorted(self._folder.glob("*.jwt"))[:_FILES_MAX]:
            try:
                with path.open(encoding="ascii") as file:
                    text = file.read(CREDENTIAL_MAX + 1).strip()
                found.append(read_credential(text, holder=self._did, now=now))
            except (OSError, ValueError) as error:
                _log.warning("credential_left_out", file=path.name, why=str(error))
            except Unproven as error:
                _log.warning("credential_left_out", file=path.name, why=error.private or error.message)
        return found
