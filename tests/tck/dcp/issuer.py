"""A real catalogue process that issues credentials to the kit's holder, and the admission of that holder.

The kit's parties exist only while the kit runs, but an operator admits a member whose DID document can be read. So a
stand-in serves a document with another key on the kit's port, and takes the delivery of the admission. Then the
catalogue starts again, as it keeps documents for minutes.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from joserfc.jwk import ECKey

from connector.identity.did import document
from connector.identity.keys import public_jwk
from tests.support.processes import Process, catalogue_process

TYPES = "MembershipCredential,SensitiveDataCredential"  # the kit waits for two credentials
_DELIVERED_SECONDS = 30.0


@dataclass
class StandIn:
    """The kit's holder before the kit runs."""

    did: str
    port: int
    delivered: threading.Event = field(default_factory=threading.Event)
    key: ECKey = field(default_factory=lambda: ECKey.generate_key("P-256", auto_kid=True))

    def document(self) -> bytes:
        url = f"http://127.0.0.1:{self.port}"
        return json.dumps(document(self.did, jwk=public_jwk(self.key), root_url=url, credential_service=url)).encode()


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, stand_in: StandIn, *given: object) -> None:
        self._stand_in = stand_in
        super().__init__(*given)  # type: ignore[arg-type]  # as the server gives them

    def do_GET(self) -> None:
        self._answer(self._stand_in.document() if self.path == "/holder/did.json" else None)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", "0")))
        self._answer(b"{}" if self.path == "/credentials" else None)
        if self.path == "/credentials":
            self._stand_in.delivered.set()

    def _answer(self, body: bytes | None) -> None:
        self.send_response(404 if body is None else 200)
        self.send_header("content-length", str(len(body or b"")))
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, *_: object) -> None:
        """Nothing: the catalogue's log has it."""


@asynccontextmanager
async def issuing(directory: Path, port: int, holder: str, kit_port: int, *, hub: bool) -> AsyncIterator[Process]:
    """A catalogue that has admitted the kit's holder. `hub`: the kit knows formats by IdentityHub's names alone."""
    settings = {"ISSUER_TYPES": TYPES, "ISSUER_KEYS_FOR_ALL_PURPOSES": holder, "LOG_LEVEL": "info"}
    if hub:
        settings["ISSUER_HUB_FORMATS"] = holder
    catalogue = catalogue_process(directory / "catalogue", port, **settings)
    try:
        await asyncio.to_thread(_admit, catalogue, StandIn(holder, kit_port))
        catalogue.kill()
        await asyncio.to_thread(catalogue.start)
        yield catalogue
    finally:
        catalogue.kill()


def _admit(catalogue: Process, stand_in: StandIn) -> None:
    """Admit the kit's holder, and take the delivery for it."""
    server = ThreadingHTTPServer(("127.0.0.1", stand_in.port), partial(_Handler, stand_in))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        catalogue.start()
        catalogue.api().post("/members", {"id": stand_in.did, "name": "kit"})
        if not stand_in.delivered.wait(_DELIVERED_SECONDS):
            raise RuntimeError(f"expected a delivery within {_DELIVERED_SECONDS:g} s; see {catalogue.directory}/log")
    finally:
        server.shutdown()
        server.server_close()
