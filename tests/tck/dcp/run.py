"""`make tck-dcp`: the official kit of the Decentralized Claims Protocol, against a real connector, from a clean clone.

In two parts the connector verifies, and holds credentials. Exit codes as in `tests/tck/run.py`; where the kit cannot
be had the last line is `TCK-DCP NOT RUN: artifacts not reachable`.
"""

from __future__ import annotations

import argparse
import itertools
import secrets
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from string import Template

import httpx2
import yaml

HERE = Path(__file__).parent
ROOT = HERE.parent.parent.parent
sys.path[:1] = [str(ROOT)]  # started as a file, the tests' packages are found from the repository's root

from tests.tck import run  # noqa: E402
from tests.tck.product import Place, Product, free_port  # noqa: E402

MARK = ROOT / "var" / "tck-dcp" / "not-reachable"  # .ci/run goes on past this, and past nothing else
VERSIONS = ("1.0.2", "1.0.0-RC6")  # newest first
_CASES = "org.eclipse.dataspacetck.dcp.verification"
_TYPE = "MembershipCredential"


@dataclass(frozen=True, slots=True)
class Part:
    """A role of the connector: the packages of its cases, and how many pass."""

    packages: tuple[str, ...]
    expected: int


# RC6 disables three of the holder's cases.
PARTS = {
    "verifier": Part(("presentation.verifier",), 20),
    "holder": Part(("presentation.cs", "issuance.cs"), 40),
}


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
    files = {name: directory / name for name in ("kit.properties", "rules.yaml", "sts.secret")}
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
    known = {
        "kit_port": kit_port,
        "cases": ",".join(f"{_CASES}.{name}" for name in PARTS[part].packages),
        "about": "\n".join(f"dataspacetck.{name}={value}" for name, value in about.items()),
    }
    files["rules.yaml"].write_text(rules(kit_port, credentials="required" if part == "verifier" else "never"))
    files["kit.properties"].write_text(Template((HERE / "kit.properties").read_text()).substitute(known))
    return files["kit.properties"], settings


def describe_holder(place: Place, secret: str) -> dict[str, str]:
    """The kit's properties about a holder."""
    return {
        "did.holder": place.participant,
        "sts.url": f"http://127.0.0.1:{place.management_port}/sts",
        "sts.client.id": place.participant,
        "sts.client.secret": secret,
        "credentials.correlation.id": "kit-request-1",
    }


async def once(part: str, version: str, classes: str, directory: Path, only: str) -> int:
    """One run of a part with a new connector; its exit code. Logs stay in `directory`."""
    began, kit_port = time.monotonic(), free_port()
    place = Place(directory, free_port(), free_port())
    properties, settings = prepare(part, version, place, kit_port)
    async with httpx2.AsyncClient(timeout=30, trust_env=False) as operator:
        product = Product(place, {}, operator, settings)
        try:
            await product.start()
            print(f"kit {version}, {part}; logs in {directory}", flush=True)
            code, last = await run.run_kit(classes, properties, least=1 if only else PARTS[part].expected, part=only)
        finally:
            product.stop()
    print(f"kit {version}, {part}, took {time.monotonic() - began:.1f} s, exit code {code}")
    print(last, flush=True)
    return code


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
    runs = [
        (f"run{number}-{part}", lambda place, part=part: once(part, version, classes, place, arguments.only))
        for number, part in itertools.product(range(arguments.times), parts)
    ]
    return run.run_each(directory, runs)


if __name__ == "__main__":
    sys.exit(main())
