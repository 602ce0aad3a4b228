"""`make tck`: the official conformance kit against a real connector, from a clean clone.

Once with self-issued tokens alone, once with Decentralized Claims.

Exit codes: 0 all cases passed; 1 a case failed or too few passed; 2 the run itself broke; 75 the kit could not be had
at all (the last line is then `TCK NOT RUN: artifacts not reachable`), so that a caller can tell it from a failure.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import httpx2

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
sys.path[:1] = [str(ROOT)]  # started as a file, the tests' packages are found from the repository's root

from tests.tck import harness, script  # noqa: E402
from tests.tck.product import free_port  # noqa: E402

MARK = ROOT / "var" / "tck" / "not-reachable"  # .ci/run goes on past this, and past nothing else
# Newest first. 1.0.0-RC6 has the same 67 cases as 1.0.1 (between them are moved packages and newer libraries), and is
# on registries that do not carry 1.0.1.
VERSIONS = ("1.0.1", "1.0.0-RC6")
EXPECTED = 65  # of 67; the kit itself disables two
NOT_REACHABLE = 75
IDENTITIES = {"tokens": "self-issued tokens alone", "dcp": "Decentralized Claims"}
T = TypeVar("T")
UNREACHABLE_WORDS = (
    "Could not find artifact",
    "Could not transfer",
    "Could not resolve",
    "offline mode",
    "was not found in",
    "Unknown host",
)
PACKAGES = {"javac": "openjdk-17-jdk-headless", "mvn": "maven"}


class NotReachable(Exception):
    """The kit, or what runs it, cannot be had on this machine."""


def tools() -> None:
    """A JDK and Maven, from Debian's packages where they are missing."""
    missing = [package for tool, package in PACKAGES.items() if shutil.which(tool) is None]
    if not missing:
        return
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        raise NotReachable(f"needs {' and '.join(missing)}: install them, or run as root on Debian")
    for command in (["apt-get", "update", "-qq"], ["apt-get", "install", "-y", "-qq", *missing]):
        if subprocess.run(command, stdout=sys.stderr, check=False).returncode:
            raise NotReachable(f"{' '.join(command)} failed")


def class_path(
    directory: Path, *options: str, pom: Path = HERE / "pom.xml", versions: Sequence[str] = VERSIONS
) -> tuple[str, str]:
    """The newest version of a kit that can be had, and its class path. `options` are Maven's."""
    for version in versions:
        out = directory / "class.path"
        command = ["mvn", "-B", "-q", *options, "-f", str(pom), f"-Dkit.version={version}"]
        done = subprocess.run(
            [*command, "dependency:build-classpath", f"-Dmdep.outputFile={out}"], capture_output=True, text=True
        )
        if done.returncode == 0:
            return version, out.read_text().strip()
        text = done.stdout + done.stderr
        if not any(words in text for words in UNREACHABLE_WORDS):
            raise RuntimeError(f"Maven failed, and not for want of artifacts:\n{text}")
        print(f"kit {version}: not reachable")
    raise NotReachable(f"none of {', '.join(versions)} can be resolved")


def obtain(mark: Path, title: str, find: Callable[[], T]) -> T | None:
    """What `find` gets from Maven; None, with `mark` set and an honest last line, where it cannot be had."""
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.unlink(missing_ok=True)
    try:
        tools()
        return find()
    except NotReachable as reason:
        mark.touch()
        print(f"{reason}\n{title} NOT RUN: artifacts not reachable", flush=True)
        return None


def run_each(directory: Path, runs: Iterable[tuple[str, Callable[[Path], Coroutine[Any, Any, int]]]]) -> int:
    """Carry out runs, each in a new folder whose name begins with its name, until one fails; the exit code."""
    for name, once_in in runs:
        place = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=directory))
        try:
            code = asyncio.run(once_in(place))
        except (RuntimeError, OSError, httpx2.HTTPError) as error:
            print(f"the run broke, see {place}: {error}", flush=True)
            return 2
        if code:
            return 1 if code in (1, 2) else 2
    return 0


def check_runner(classes: str, directory: Path) -> str:
    """Run `MonitorTest.java`, what kits since 1.0.0-RC7 ask of the runner; its counts, or RuntimeError."""
    compiled, properties = directory / "runner", directory / "runner.properties"
    properties.touch()
    kit = f"{compiled}{os.pathsep}{classes}"
    said = ""
    for command in (
        ["javac", "-cp", classes, "-d", str(compiled), str(HERE / "MonitorTest.java")],
        ["java", "-cp", kit, str(HERE / "Runner.java"), str(properties), "1", "RUNNER:"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        said = done.stdout + done.stderr
        if done.returncode:
            raise RuntimeError(f"expected Runner.java to give the kit its monitor:\n{said}")
    return said.strip().splitlines()[-1]


async def once(version: str, classes: str, directory: Path, part: str, identity: str) -> int:
    """One run of the kit; its exit code. Logs stay in `directory`. `identity`: of IDENTITIES."""
    began, cases = time.monotonic(), script.load(HERE / "cases.yaml")
    async with harness.serving(cases, directory, credentials=identity == "dcp") as running:
        properties = directory / "kit.properties"
        properties.write_text(running.properties(free_port()))
        print(
            f"kit {version}, {IDENTITIES[identity]}; seeded in {time.monotonic() - began:.1f} s; logs in {directory}",
            flush=True,
        )
        code, last = await run_kit(classes, properties, least=1 if part else EXPECTED, part=part)
    print(f"kit {version} took {time.monotonic() - began:.1f} s, exit code {code}")
    print(f"{IDENTITIES[identity]}: {last}", flush=True)
    return code


async def run_kit(classes: str, properties: Path, *, least: int, part: str = "") -> tuple[int, str]:
    """Run the kit's cases with these properties; its exit code and line of counts. Its log is in the same folder."""
    kit = await asyncio.create_subprocess_exec(
        *("java", "-cp", classes, str(HERE / "Runner.java"), str(properties), str(least), part),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    last = await _follow(kit, properties.parent / "kit.log")
    return await kit.wait(), last


async def _follow(kit: asyncio.subprocess.Process, log: Path) -> str:
    """Print the kit's results as they come, keep all of its words in `log`; the line of counts."""
    assert kit.stdout is not None
    last = "0 passed, 1 failed, 0 skipped"  # where the kit dies before it has counted
    with log.open("wb") as out:
        async for line in kit.stdout:
            out.write(line)
            text = line.decode(errors="replace").rstrip()
            if text.endswith("skipped") and " passed, " in text:
                last = text
            elif text.startswith(("PASS ", "FAIL ", "SKIP ")):
                print(text, flush=True)
    return last


def main() -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description="Run the Dataspace Protocol conformance kit.")
    parser.add_argument("--times", type=int, default=1, help="how often, each with a new connector")
    parser.add_argument("--only", default="", help="part of a case's name, e.g. CN:01-02")
    parser.add_argument("--identity", choices=IDENTITIES, help="one way to prove identity alone")
    parser.add_argument("--logs", type=Path, help="directory to keep logs in; var/tck by default")
    arguments = parser.parse_args()
    directory = (arguments.logs or MARK.parent).resolve()
    directory.mkdir(parents=True, exist_ok=True)
    found = obtain(MARK, "TCK", lambda: class_path(directory, "-U"))
    if found is None:
        return NOT_REACHABLE
    version, classes = found
    try:
        print(f"runner: {check_runner(classes, directory)}", flush=True)
    except RuntimeError as error:
        print(error, flush=True)
        return 2
    identities = [arguments.identity] if arguments.identity else list(IDENTITIES)
    runs = [
        (f"run{number}-{name}", lambda place, name=name: once(version, classes, place, arguments.only, name))
        for number, name in itertools.product(range(arguments.times), identities)
    ]
    return run_each(directory, runs)


if __name__ == "__main__":
    sys.exit(main())
