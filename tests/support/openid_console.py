"""A console whose people log in at a real OpenID provider, the certified `oidc-provider`; both on loopback."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from joserfc.jwk import ECKey, KeySet

from connector.app import management_app
from connector.services import Services
from tests.connector.console.support import console
from tests.support import npm
from tests.support.ports import free_range

VERSION = "9.13.3"
SCRIPT = Path(__file__).with_name("openid_provider.mjs")
FILE = """providers:
- name: clinic
  title: North Clinic
  issuer: {issuer}
  client_id: hanse
  client_secret: a-secret-of-the-test-alone-0123456789
  scopes: openid profile
  cli_client_id: hanse-cli
  cli_scopes: openid profile offline_access
  roles: {{data-team: owner, board: approver, revision: auditor}}
"""


@dataclass
class SignOnPlace:
    """A running console at `base`, and a running provider at `issuer`."""

    base: str
    issuer: str
    parts: Services


@asynccontextmanager
async def sign_on_place(folder: Path, key: ECKey | None = None, *, lifetime: int = 3600) -> AsyncIterator[SignOnPlace]:
    """Console and provider to the end of the block. `lifetime`: of ID tokens, in seconds.

    With a key, the console authenticates with it alone.
    """
    program, first = npm.installed("oidc-provider", VERSION), free_range(2)
    base, issuer = f"http://127.0.0.1:{first}", f"http://127.0.0.1:{first + 1}"
    text = FILE.format(issuer=issuer)
    if key is not None:
        text = re.sub("client_secret: .*", f"client_key: {json.dumps(key.as_dict(private=True))}", text)
    running = provider(program, first + 1, base, key, lifetime=lifetime)
    async with running, console_with(folder, text, first) as parts:
        yield SignOnPlace(base, issuer, parts)


@asynccontextmanager
async def console_with(folder: Path, sign_on: str, port: int) -> AsyncIterator[Services]:
    """A served console with this sign-on file."""
    file = folder / "providers.yaml"
    file.write_text(sign_on)
    file.chmod(0o600)
    base = f"http://127.0.0.1:{port}"
    settings = {"sign_on": file, "management_url": base, "allow_private": "127.0.0.0/8", "insecure_http": True}
    made = console(folder, **settings)
    try:
        async with served(management_app(made.parts), port):
            yield made.parts
    finally:
        await made.http.aclose()
        await made.parts.net.close()
        made.parts.store.close()


@asynccontextmanager
async def provider(
    folder: Path, port: int, base: str, key: ECKey | None = None, *, lifetime: int = 3600
) -> AsyncIterator[None]:
    """The provider, from its first word to the end of the block."""
    script = folder / f"provider-{port}.mjs"  # a module finds others from where it stands; tests run side by side
    shutil.copy(SCRIPT, script)
    pipe = asyncio.subprocess.PIPE
    keys = [] if key is None else [json.dumps(KeySet([key]).as_dict(private=False))]
    command = ("node", str(script), str(port), base, str(lifetime), *keys)
    process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe)
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            while b"listening" not in (line := await process.stdout.readline()):
                assert line, f"the provider ended: {(await process.communicate())[1].decode()}"
        yield
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()
        script.unlink()


@asynccontextmanager
async def served(app: FastAPI, port: int) -> AsyncIterator[None]:
    """An app on loopback to the end of the block."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error", lifespan="off"))
    running = asyncio.create_task(server.serve())
    try:
        async with asyncio.timeout(60):
            while not server.started:
                await asyncio.sleep(0.01)
        yield
    finally:
        server.should_exit = True
        await running
