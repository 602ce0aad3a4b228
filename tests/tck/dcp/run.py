"""`make tck-dcp`: the official kit of the Decentralized Claims Protocol against Hanse's processes, from a clean clone.

In three parts a connector verifies and holds credentials, and a catalogue issues them. Exit codes as in
`tests/tck/run.py`; where the kit cannot be had the last line is `TCK-DCP NOT RUN: artifacts not reachable`.
"""

from __future__ import annotations

import argparse
import re
import secrets
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from string import Template

import httpx2
import yaml

HERE = Path(__file__).parent
ROOT = HERE.parent.parent.parent
sys.path[:1] = [str(ROOT)]  # started as a file, the tests' packages are found from the repository's root

from tests.tck import run  # noqa: E402
from tests.tck.dcp import issuer  # noqa: E402
from tests.tck.product import Place, Product, free_port  # noqa: E402

MARK = ROOT / "var" / "tck-dcp" / "not-reachable"  # .ci/run goes on past this, and past nothing else
VERSIONS = ("1.0.2", "1.0.0-RC6")  # newest first
_CASES = "org.eclipse.dataspacetck.dcp.verification"
_TYPE = "MembershipCredential"


@dataclass(frozen=True, slots=True)
class Part:
    """A role: the packages of its cases, and how many pass."""

    packages: tuple[str, ...]
    expected: int


# RC6 disables three of the holder's cases.
PARTS = {
    "verifier": Part(("presentation.verifier",), 20),
    "holder": Part(("presentation.cs", "issuance.cs"), 40),
    "issuer": Part(("issuance.issuer",), 25),
}
_COUNTS = re.compile(r"(\d+) passed, (\d+) failed, (\d+) skipped")


def rules(kit_port: int, *, credentials: str) -> str:
    """The rules of an operator that trusts the kit's issuer.

    The kit presents other credentials with each request. The documents of RC6 list no key for any purpose.
    """
    parties = [did_of(kit_port, name) for name in ("issuer", "holder", "thirdparty", "verifier")]
    peers = {party: {"keys_for_all_purposes": True} for party in parties}
    trusted = {"issuers": {did_of(kit_port, "issuer"): [_TYPE]}, "scopes": [_TYPE], "presentation_seconds": 0}
    return yaml.safe_dump({**trusted, "peers": peers, "credentials": credentials})


def did_of(kit_port: int, party: str) -> str:
    """The DID of one of the kit's parties."""
    return f"did:web:127.0.0.1%3A{kit_port}:{party}"


def prepare(part: str, version: str, place: Place, kit_port: int) -> tuple[Path, dict[str, str]]:
    """Write the kit's properties and the connector's files; the properties and the connector's settings."""
    directory = place.directory
    files = {name: directory / name for name in ("rules.yaml", "sts.secret")}
    about = {"did.verifier": place.participant, "vpp.trigger.endpoint": f"{place.base}/catalog/request"}
    settings = {"CREDENTIAL_RULES": str(files["rules.yaml"]), "CREDENTIAL_SERVICE": f"{place.root}/dcp"}
    if part == "holder":
        secret = secrets.token_urlsafe(24)
        files["sts.secret"].write_text(secret)
        about = describe_holder(place, secret)
        settings |= {
            "CREDENTIAL_SCOPES": _TYPE,
            "CREDENTIAL_ISSUERS": did_of(kit_port, "issuer"),
            "STS_SERVE_SECRET_FILE": str(files["sts.secret"]),
            # RC6 wants a query beyond its access token refused, later versions want it answered within the token.
            "CREDENTIAL_REFUSE_UNGRANTED": str("RC6" in version).lower(),
        }
    files["rules.yaml"].write_text(rules(kit_port, credentials="required" if part == "verifier" else "never"))
    return write_properties(part, directory, kit_port, about), settings


def write_properties(part: str, directory: Path, kit_port: int, about: dict[str, str]) -> Path:
    """Write the kit's properties: what it runs, and `about` what."""
    known = {
        "kit_port": kit_port,
        "cases": ",".join(f"{_CASES}.{name}" for name in PARTS[part].packages),
        "about": "\n".join(f"dataspacetck.{name}={value}" for name, value in about.items()),
    }
    file = directory / "kit.properties"
    file.write_text(Template((HERE / "kit.properties").read_text()).substitute(known))
    return file


def describe_holder(place: Place, secret: str) -> dict[str, str]:
    """The kit's properties about a holder."""
    return {
        "did.holder": place.participant,
        "sts.url": f"http://127.0.0.1:{place.management_port}/sts",
        "sts.client.id": place.participant,
        "sts.client.secret": secret,
        "credentials.correlation.id": "kit-request-1",
    }


@asynccontextmanager
async def running(part: str, version: str, directory: Path) -> AsyncIterator[Path]:
    """A new process in the role of this part, ready for the kit; the kit's properties."""
    kit_port, place = free_port(), Place(directory, free_port(), free_port())
    if part == "issuer":
        holder = did_of(kit_port, "holder")
        async with issuer.issuing(directory, place.public_port, holder, kit_port, hub="RC6" in version) as catalogue:
            yield write_properties(part, directory, kit_port, {"did.issuer": catalogue.participant})
        return
    properties, settings = prepare(part, version, place, kit_port)
    async with httpx2.AsyncClient(timeout=30, trust_env=False) as operator:
        product = Product(place, {}, operator, settings)
        try:
            await product.start()
            yield properties
        finally:
            product.stop()


async def once(part: str, version: str, classes: str, directory: Path, *, only: str, counts: list[str]) -> int:
    """One run of a part with a new process; its exit code. Logs stay in `directory`, the line of counts in `counts`."""
    began = time.monotonic()
    async with running(part, version, directory) as properties:
        print(f"kit {version}, {part}; logs in {directory}", flush=True)
        code, last = await run.run_kit(classes, properties, least=1 if only else PARTS[part].expected, part=only)
    print(f"kit {version}, {part}, took {time.monotonic() - began:.1f} s, exit code {code}")
    print(last, flush=True)
    counts.append(last)
    return code


def total(counts: list[str]) -> str:
    """The sums of lines of counts."""
    found = [tuple(map(int, match.groups())) for line in counts if (match := _COUNTS.search(line))]
    passed, failed, skipped = (sum(column) for column in zip(*found, strict=True)) if found else (0, 0, 0)
    return f"{passed} passed, {failed} failed, {skipped} skipped"


def main() -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description="Run the Decentralized Claims conformance kit.")
    parser.add_argument("--times", type=int, default=1, help="how often, each with a new connector")
    parser.add_argument("--only", default="", help="part of a case's name")
    parser.add_argument("--part", choices=PARTS, help="one part alone")
    arguments = parser.parse_args()
    parts = [arguments.part] if arguments.part else list(PARTS)
    directory = MARK.parent
    found = run.obtain(
        MARK, "TCK-DCP", lambda: run.class_path(directory, "-U", pom=HERE / "pom.xml", versions=VERSIONS)
    )
    if found is None:
        return run.NOT_REACHABLE
    version, classes = found
    for number in range(arguments.times):
        counts: list[str] = []
        runs = [
            (f"run{number}-{part}", partial(once, part, version, classes, only=arguments.only, counts=counts))
            for part in parts
        ]
        code = run.run_each(directory, runs)
        print(f"total: {total(counts)}", flush=True)
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
