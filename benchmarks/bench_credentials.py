"""The second part of `make bench-dsp`: what Decentralized Claims costs a negotiation between two connectors.

Three pairs of real connectors take turns in one run: with self-issued tokens alone; with membership credentials, which
a connector asks for once a minute (the default); and with credentials that are asked for with each message.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import uvicorn
import yaml
from fastapi import FastAPI

from benchmarks.bench_dsp import Bench, Times, databases, ms, timed
from tests.support import processes
from tests.support.issuer import TYPE, Issuer, import_credential
from tests.support.ports import free_range

_AIM = 1.5
_ALONE, _MINUTE, _EACH = "self-issued tokens alone", "credentials once a minute", "credentials with each message"


@contextmanager
def issuing() -> Iterator[Issuer]:
    """An issuer whose DID document and status list are served."""
    port = free_range(1)
    issuer, app = Issuer(f"http://127.0.0.1:{port}"), FastAPI()
    app.include_router(issuer.router())
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield issuer
    finally:
        server.should_exit = True
        thread.join()


def credential_settings(directory: Path, issuer: Issuer, seconds: int) -> dict[str, str]:
    """Each side asks for membership credentials, and presents its own."""
    directory.mkdir(parents=True)
    rules = {"issuers": {issuer.did: [TYPE]}, "scopes": [TYPE], "presentation_seconds": seconds}
    path = directory / "rules.yaml"
    path.write_text(yaml.safe_dump(rules))
    return {"CREDENTIAL_RULES": str(path), "CREDENTIAL_SCOPES": TYPE}


@contextmanager
def pair(directory: Path, url: Callable[[str], str], issuer: Issuer, seconds: int | None) -> Iterator[Bench]:
    """Two connectors; `seconds`: how long a presentation counts, None without credentials."""
    settings = {} if seconds is None else credential_settings(directory, issuer, seconds)
    urls = (url(f"{directory.name}n"), url(f"{directory.name}s"))
    with processes.two(directory, urls=urls, **settings) as two:
        if settings:
            for one in two:
                membership, _ = issuer.issue(one.participant)
                import_credential(membership, one.directory / "credential.jwt", one.environ())
        yield Bench(*two)


def compare(kind: str, benches: dict[str, Bench], repeat: int) -> None:
    found: dict[str, Times] = {name: [] for name in benches}
    for bench in benches.values():
        timed(20, bench.negotiate)
    for number in range(repeat):
        for name in list(benches) if number % 2 else list(benches)[::-1]:
            found[name] += timed(1, benches[name].negotiate)
    print(f"\n{kind}: negotiation to FINALIZED, {repeat} in turns")
    for name, times in found.items():
        ratios = [one / other for one, other in zip(times, found[_ALONE], strict=True)]
        aim = f" (aim: at most {_AIM})" if name == _MINUTE else ""
        print(f"  {name:30} {ms(times):8.2f} ms median, ratio {statistics.median(ratios):.2f}{aim}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=100)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hanse-bench-") as folder, databases(Path(folder)) as kinds:
        for kind, url in kinds.items():
            with issuing() as issuer, ExitStack() as stack:
                ways = {_ALONE: ("a", None), _MINUTE: ("m", 60), _EACH: ("e", 0)}
                benches = {
                    name: stack.enter_context(pair(Path(folder) / f"{kind.lower()}{short}", url, issuer, seconds))
                    for name, (short, seconds) in ways.items()
                }
                compare(kind, benches, given.repeat)


if __name__ == "__main__":
    main()
