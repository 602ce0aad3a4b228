"""`make tck-dcp`: the official kit of the Decentralized Claims Protocol, against a real connector, from a clean clone.

The kit is holder, issuer and caller; the connector verifies. Exit codes as in `tests/tck/run.py`; where the kit cannot
be had the last line is `TCK-DCP NOT RUN: artifacts not reachable`.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
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
EXPECTED = 20
_TYPE = "MembershipCredential"


def rules(kit_port: int) -> str:
    """The rules of an operator that trusts the kit's issuer.

    The kit presents other credentials with each request. The documents of RC6 list no key for any purpose.
    """
    parties = {
        name: f"did:web:127.0.0.1%3A{kit_port}:{name}" for name in ("issuer", "holder", "thirdparty", "verifier")
    }
    peers = {party: {"keys_for_all_purposes": True} for party in parties.values()}
    return yaml.safe_dump(
        {"issuers": {parties["issuer"]: [_TYPE]}, "scopes": [_TYPE], "peers": peers, "presentation_seconds": 0}
    )


async def once(version: str, classes: str, directory: Path, part: str) -> int:
    """One run of the kit with a new connector; its exit code. Logs stay in `directory`."""
    began, kit_port = time.monotonic(), free_port()
    place = Place(directory, free_port(), free_port())
    known = {"base": place.base, "participant": place.participant, "kit_port": kit_port}
    properties, rules_file = directory / "kit.properties", directory / "rules.yaml"
    properties.write_text(Template((HERE / "kit.properties").read_text()).substitute(known))
    rules_file.write_text(rules(kit_port))
    more = {"CREDENTIAL_RULES": str(rules_file), "CREDENTIAL_SERVICE": f"{place.root}/credentials"}
    async with httpx2.AsyncClient(timeout=30, trust_env=False) as operator:
        product = Product(place, {}, operator, more)
        try:
            await product.start()
            print(f"kit {version}; logs in {directory}", flush=True)
            code, last = await run.run_kit(classes, properties, least=1 if part else EXPECTED, part=part)
        finally:
            product.stop()
    print(f"kit {version} took {time.monotonic() - began:.1f} s, exit code {code}")
    print(last, flush=True)
    return code


def main() -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description="Run the Decentralized Claims conformance kit.")
    parser.add_argument("--times", type=int, default=1, help="how often, each with a new connector")
    parser.add_argument("--only", default="", help="part of a case's name")
    arguments = parser.parse_args()
    directory = MARK.parent
    directory.mkdir(parents=True, exist_ok=True)
    MARK.unlink(missing_ok=True)
    try:
        run.tools()
        version, classes = run.class_path(directory, "-U", pom=HERE / "pom.xml", versions=VERSIONS)
    except run.NotReachable as reason:
        MARK.touch()
        print(f"{reason}\nTCK-DCP NOT RUN: artifacts not reachable", flush=True)
        return run.NOT_REACHABLE
    for number in range(arguments.times):
        place = Path(tempfile.mkdtemp(prefix=f"run{number}-", dir=directory))
        try:
            code = asyncio.run(once(version, classes, place, arguments.only))
        except (RuntimeError, OSError, httpx2.HTTPError) as error:
            print(f"the run broke, see {place}: {error}", flush=True)
            return 2
        if code:
            return 1 if code in (1, 2) else 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
