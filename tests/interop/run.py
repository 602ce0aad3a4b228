"""`make interop`: a real Eclipse EDC against a real Hanse connector, in both directions, from a clean clone.

Exit codes: 0 all steps passed; 1 a step failed; 2 the run itself broke; 75 EDC could not be had at all (the last line
is then `INTEROP NOT RUN: artifacts not reachable`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import uvicorn
from fastapi import FastAPI, Request, Response
from joserfc import jws
from joserfc.jwk import ECKey

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
sys.path[:1] = [str(ROOT)]  # started as a file, the tests' packages are found from the repository's root

from connector.identity import did  # noqa: E402
from tests.interop import steps  # noqa: E402
from tests.interop.edc import PARTICIPANT, Edc, mock_token, mock_tokens  # noqa: E402
from tests.tck.product import Place, Product, free_port  # noqa: E402
from tests.tck.run import NOT_REACHABLE, UNREACHABLE_WORDS, NotReachable, obtain, run_each  # noqa: E402

MARK = ROOT / "var" / "interop" / "not-reachable"  # .ci/run goes on past this, and past nothing else
SERVICE = "META-INF/services/org.eclipse.edc.spi.system.ServiceExtension"


def class_path(directory: Path) -> str:
    """The class path of EDC from Maven, with our extension compiled on it."""
    out, classes = directory / "class.path", directory / "classes"
    command = ["mvn", "-B", "-q", "-f", str(HERE / "pom.xml"), "dependency:build-classpath", f"-Dmdep.outputFile={out}"]
    done = subprocess.run(command, capture_output=True, text=True)
    text = done.stdout + done.stderr
    if done.returncode and any(words in text for words in UNREACHABLE_WORDS):
        raise NotReachable("the artifacts of Eclipse EDC cannot be resolved")
    if done.returncode:
        raise RuntimeError(f"Maven failed, and not for want of artifacts:\n{text}")
    known = out.read_text().strip()
    subprocess.run(["javac", "-cp", known, "-d", str(classes), *map(str, HERE.glob("java/*.java"))], check=True)
    (classes / SERVICE).parent.mkdir(parents=True, exist_ok=True)
    (classes / SERVICE).write_text("Interop\n")
    return f"{classes}{os.pathsep}{known}"


@dataclass(frozen=True, slots=True)
class Member(Place):
    """A connector of a data space with an operator."""

    anchor: str

    def environment(self, tokens: Mapping[str, str]) -> dict[str, str]:
        return {**Place.environment(self, tokens), "HANSE_TRUST_ANCHOR": self.anchor}


class Servers:
    """The files of EDC's source, sinks, the operator's register of members, and the way to EDC.

    The way to EDC gives each request of Hanse EDC's mock token.

    EDC's iam-mock reads its own kind of token only, which Hanse does not make.
    """

    def __init__(self, http: httpx2.AsyncClient, port: int, participant: str) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.sunk: dict[str, bytes] = {}
        self.edc = ""
        self._http, self._token = http, mock_token(participant, PARTICIPANT)
        self.operator = f"did:web:127.0.0.1%3A{port}"
        self._key = ECKey.generate_key("P-256", auto_kid=True)

    def app(self) -> FastAPI:
        app = FastAPI(openapi_url=None)
        app.add_api_route("/files/source.csv", self._source, methods=["GET"])
        app.add_api_route("/files/sink/{name}", self._sink, methods=["POST"])
        app.add_api_route("/.well-known/did.json", self._document, methods=["GET"])
        app.add_api_route("/members.jws", self._register, methods=["GET"])
        app.add_api_route("/protocol/{path:path}", self._forward, methods=["GET", "POST"])
        return app

    async def _document(self) -> Response:
        jwk = self._key.as_dict(private=False)
        return Response(json.dumps(did.document(self.operator, jwk=jwk, root_url=self.url)))

    async def _register(self) -> Response:
        header = {"alg": "ES256", "kid": f"{self.operator}#{self._key.kid}"}
        body = {"iss": self.operator, "exp": time.time() + 300, "members": [{"id": PARTICIPANT, **steps.MEMBER}]}
        return Response(jws.serialize_compact(header, json.dumps(body).encode(), self._key))

    async def _source(self) -> Response:
        return Response(steps.CSV, media_type="text/csv")

    async def _sink(self, name: str, request: Request) -> Response:
        body = await request.body()
        if request.headers.get("authorization") != "token":
            return Response(status_code=401)
        self.sunk[name] = body
        return Response(status_code=204)

    async def _forward(self, path: str, request: Request) -> Response:
        kept = {name: value for name, value in request.headers.items() if name in ("accept", "content-type")}
        headers = {**kept, "authorization": self._token}
        reply = await self._http.request(
            request.method, f"{self.edc}/{path}", headers=headers, content=await request.body()
        )
        return Response(reply.content, reply.status_code, media_type=reply.headers.get("content-type"))


@asynccontextmanager
async def running(classes: str, directory: Path) -> AsyncIterator[steps.Space]:
    """Both connectors, seeded."""
    port = free_port()
    place = Member(directory, free_port(), free_port(), f"did:web:127.0.0.1%3A{port}")
    async with (
        httpx2.AsyncClient(timeout=30, trust_env=False) as operator,
        httpx2.AsyncClient(timeout=60, trust_env=False) as http,
    ):
        tokens = mock_tokens(PARTICIPANT, (place.participant, place.base, place.root))
        hanse = Product(place, dict.fromkeys(tokens, PARTICIPANT), operator)
        servers = Servers(http, port, place.participant)
        edc = Edc(directory, classes, f"{servers.url}/protocol", http)
        servers.edc = edc.protocol
        server = uvicorn.Server(uvicorn.Config(servers.app(), port=port, log_level="error", lifespan="off"))
        serving = asyncio.create_task(server.serve())
        try:
            await asyncio.gather(edc.start(), hanse.start())
            space = steps.Space(
                edc, hanse, http, directory, f"{servers.url}/protocol/2025-1", f"{servers.url}/files", servers.sunk
            )
            await space.seed()
            yield space
        finally:
            edc.stop()
            hanse.stop()
            server.should_exit = True
            await serving


async def once(classes: str, directory: Path, only: str) -> int:
    """Run the steps in order; 1 if one failed, else 0."""
    failed, began = 0, time.monotonic()
    async with running(classes, directory) as space:
        print(f"EDC and Hanse are up after {time.monotonic() - began:.1f} s; logs in {directory}", flush=True)
        for title, step in steps.STEPS:
            if only not in title:
                continue
            try:
                await step(space)
                print(f"PASS {title}", flush=True)
            except (RuntimeError, LookupError, ValueError, TimeoutError, OSError, httpx2.HTTPError) as error:
                failed += 1
                print(f"FAIL {title}: {type(error).__name__}: {error}", flush=True)
    passed = len([title for title, _ in steps.STEPS if only in title]) - failed
    print(f"{passed} passed, {failed} failed in {time.monotonic() - began:.1f} s", flush=True)
    return 1 if failed else 0


def main() -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description="Run Eclipse EDC against Hanse.")
    parser.add_argument("--times", type=int, default=1, help="how often, each with new connectors")
    parser.add_argument("--only", default="", help="part of a step's title; later steps need earlier ones")
    arguments = parser.parse_args()
    classes = obtain(MARK, "INTEROP", lambda: class_path(MARK.parent))
    if classes is None:
        return NOT_REACHABLE
    names = [f"run{number}" for number in range(arguments.times)]
    return run_each(MARK.parent, ((name, lambda place: once(classes, place, arguments.only)) for name in names))


if __name__ == "__main__":
    sys.exit(main())
