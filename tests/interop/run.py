"""`make interop`: a real Eclipse EDC against a real Hanse connector, in both directions, from a clean clone.

EDC in two profiles: over the mock of an identity that EDC has, and over Decentralized Claims. A third profile is the
sign-on of people at a real Keycloak.

Exit codes: 0 all steps passed; 1 a step failed; 2 the run itself broke; 75 EDC or Keycloak could not be had at all, and
what could be had passed (the last line is then `INTEROP NOT RUN: artifacts not reachable`).
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx2
from playwright.async_api import Error as PlaywrightError

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
sys.path[:1] = [str(ROOT)]  # started as a file, the tests' packages are found from the repository's root

from tests.interop import dcp, keycloak, mock  # noqa: E402
from tests.tck.run import NOT_REACHABLE, UNREACHABLE_WORDS, NotReachable, obtain, run_each  # noqa: E402

MARK = ROOT / "var" / "interop" / "not-reachable"  # .ci/run goes on past this, and past nothing else
FAILURES = (
    RuntimeError, LookupError, ValueError, TimeoutError, OSError, AssertionError, httpx2.HTTPError, PlaywrightError,
)  # fmt: skip
SERVICE = "META-INF/services/org.eclipse.edc.spi.system.ServiceExtension"
PROFILES: Mapping[str, Any] = {"mock": mock.running, "dcp": dcp.running, "keycloak": keycloak.running}
EDC = ("mock", "dcp")
CLASSES = {"mock": ("Interop",), "dcp": ("Interop", "Dcp"), "hub": ("Hub",)}  # profile of the pom -> our extensions


def class_paths(directory: Path) -> dict[str, str]:
    """The class paths from Maven, each with our extensions compiled on it."""
    return {name: class_path(directory / name, name, classes) for name, classes in CLASSES.items()}


def class_path(directory: Path, profile: str, extensions: tuple[str, ...]) -> str:
    """The class path of a profile of the pom, with these classes of java/ compiled on it."""
    directory.mkdir(exist_ok=True)
    out, classes = directory / "class.path", directory / "classes"
    command = ["mvn", "-B", "-q", "-f", str(HERE / "pom.xml"), "-P", profile]
    done = subprocess.run(
        [*command, "dependency:build-classpath", f"-Dmdep.outputFile={out}"], capture_output=True, text=True
    )
    text = done.stdout + done.stderr
    if done.returncode and any(words in text for words in UNREACHABLE_WORDS):
        raise NotReachable("the artifacts of Eclipse EDC cannot be resolved")
    if done.returncode:
        raise RuntimeError(f"Maven failed, and not for want of artifacts:\n{text}")
    known = out.read_text().strip()
    sources = [str(HERE / "java" / f"{name}.java") for name in extensions]
    subprocess.run(["javac", "-cp", known, "-d", str(classes), *sources], check=True)
    (classes / SERVICE).parent.mkdir(parents=True, exist_ok=True)
    (classes / SERVICE).write_text("".join(f"{name}\n" for name in extensions))
    return f"{classes}{os.pathsep}{known}"


async def once(profile: str, classes: Mapping[str, str], directory: Path, only: str) -> int:
    """Run the steps in order; 1 if one failed, else 0."""
    failed, began = 0, time.monotonic()
    async with PROFILES[profile](classes, directory) as space:
        await space.seed()
        print(f"{profile}: all is up after {time.monotonic() - began:.1f} s; logs in {directory}", flush=True)
        for title, step in space.steps:
            if only not in title:
                continue
            try:
                await step(space)
                print(f"PASS {title}", flush=True)
            except FAILURES as error:
                failed += 1
                print(f"FAIL {title}: {type(error).__name__}: {error}", flush=True)
    passed = len([title for title, _ in space.steps if only in title]) - failed
    print(f"{passed} passed, {failed} failed in {time.monotonic() - began:.1f} s", flush=True)
    return 1 if failed else 0


def main() -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description="Run Eclipse EDC against Hanse.")
    parser.add_argument("--times", type=int, default=1, help="how often, each with new connectors")
    parser.add_argument("--profile", choices=PROFILES, help="one profile alone")
    parser.add_argument("--only", default="", help="part of a step's title; later steps need earlier ones")
    arguments = parser.parse_args()
    profiles = [arguments.profile] if arguments.profile else list(PROFILES)
    found = artifacts(profiles)
    runs = [
        (f"run{number}-{name}", lambda place, name=name: once(name, found[name], place, arguments.only))
        for number, name in itertools.product(range(arguments.times), found)
    ]
    code = run_each(MARK.parent, runs)
    if code or len(found) == len(profiles):
        MARK.unlink(missing_ok=True)  # a failure is none, whatever else could not be had
        return code
    MARK.touch()
    print("INTEROP NOT RUN: artifacts not reachable", flush=True)
    return NOT_REACHABLE


def artifacts(profiles: Sequence[str]) -> dict[str, Mapping[str, str]]:
    """What each profile runs, from Maven, without the profiles whose artifacts cannot be had."""
    found: dict[str, Mapping[str, str]] = {}
    if edc := [name for name in profiles if name in EDC]:
        classes = obtain(MARK, "EDC", lambda: class_paths(MARK.parent))
        found |= {name: classes for name in edc if classes is not None}
    if "keycloak" in profiles:
        home = obtain(MARK, "KEYCLOAK", lambda: keycloak.installed(MARK.parent))
        found |= {} if home is None else {"keycloak": {"keycloak": home}}
    return found


if __name__ == "__main__":
    sys.exit(main())
