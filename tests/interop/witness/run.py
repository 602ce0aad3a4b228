"""`make interop-witness`: foreign code for the protocols of witnesses (C2SP), in both directions, from a clean clone.

`main.go` has two verifiers (transparency-dev's formats and torchwood), a witness and a log by transparency-dev.

Exit codes: 0 all steps passed; 1 a step failed; 75 Go or its modules cannot be had (the last line is then
`INTEROP-WITNESS NOT RUN: artifacts not reachable`).
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
sys.path[:1] = [str(ROOT)]  # started as a file, the tests' packages are found from the repository's root

from tests.support.ports import free_range  # noqa: E402
from tests.support.processes import Process  # noqa: E402
from tests.support.waiting import eventually  # noqa: E402
from tests.support.witnessing import asked, grow  # noqa: E402

MARK = ROOT / "var" / "interop-witness" / "not-reachable"  # .ci/run goes on past this, and past nothing else
NOT_REACHABLE = 75
_WANT_OF_MODULES = ("dial tcp", "no such host", "connection refused", "i/o timeout", "TLS handshake", "Forbidden")
_GROWS = "begins: 2 cosignatures\ngrows: 2 cosignatures\ngrows again: 2 cosignatures\nis sent again: 2 cosignatures\n"
_STALE, _FORKED = "old size != current, known size 13", "consistency proof invalid, known size 0"
_REFUSED = f"goes back: {_STALE}\nforks: {_FORKED}\nforks behind: {_STALE}\n"


@dataclass(frozen=True, slots=True)
class ForeignSpace:
    """A connector, the foreign program, the foreign witness's keys and those of a foreign log."""

    connector: Process
    program: Path
    log_key: str
    witness_keys: tuple[str, ...]
    foreign_log: tuple[str, str]
    policy: Path

    def run(self, *arguments: str, stdin: bytes = b"") -> str:
        """Run the program. Raises: RuntimeError with what it said."""
        done = subprocess.run([self.program, *arguments], input=stdin, capture_output=True, timeout=60, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr.decode().strip())
        return done.stdout.decode()

    def checkpoint(self) -> bytes:
        """The checkpoint of an export, with cosignatures."""
        client = self.connector.api()
        with ZipFile(BytesIO(client.call("GET", "/audit/export"))) as evidence:
            found = evidence.read("checkpoint")
        client.close()
        return found


def build(folder: Path) -> Path | None:
    """Build the foreign program; None where Go or its modules cannot be had."""
    go = shutil.which("go")
    if go is None:
        return None
    program = folder / "witness"
    done = subprocess.run([go, "build", "-o", program, "."], cwd=HERE, capture_output=True, text=True, check=False)
    if done.returncode and any(words in done.stderr for words in _WANT_OF_MODULES):
        return None
    if done.returncode:
        raise SystemExit(f"go build failed, and not for want of modules:\n{done.stderr}")
    return program


@contextmanager
def foreign_space(program: Path, folder: Path) -> Iterator[ForeignSpace]:
    """A connector whose log the foreign witness cosigns, and that is a witness of the foreign log."""
    first = free_range(3)
    policy = folder / "policy"
    connector = Process("north", folder / "north", first, first + 1)
    connector.start()
    log_key = str(asked(connector, "/audit/witnesses")["log"])
    connector.kill()
    address = f"127.0.0.1:{first + 2}"
    witness = subprocess.Popen([program, "serve", address, log_key], stdout=subprocess.PIPE, text=True)
    try:
        assert witness.stdout is not None
        keys = tuple(witness.stdout.readline().strip() for _ in range(2))
        made = subprocess.run([program, "keygen", "foreign.example/log"], capture_output=True, text=True, check=True)
        secret, public = made.stdout.split()
        lines = [f"witness foreign-{number} {key} http://{address}\n" for number, key in enumerate(keys)]
        policy.write_text(f"log {public}\n{''.join(lines)}")
        connector.settings["WITNESS_POLICY"] = str(policy)
        connector.start()
        yield ForeignSpace(connector, program, log_key, keys, (secret, public), policy)
    finally:
        witness.kill()
        connector.kill()


def check_cosigned(space: ForeignSpace) -> None:
    """The foreign witness cosigns our log as it grows."""
    for _ in range(3):
        grow(space.connector)
        space.checkpoint()  # waits for cosignatures
    eventually(lambda: all(one["state"] == "cosigned" for one in _witnesses(space)), seconds=60)
    assert len(_witnesses(space)) == 1


def check_formats(space: ForeignSpace) -> None:
    """transparency-dev's verifier takes our signature and both cosignatures."""
    said = space.run("verify", space.log_key, *space.witness_keys, stdin=space.checkpoint()).split()
    assert int(said[0]) > 0
    assert said[1] == "3", said


def check_policy(space: ForeignSpace) -> None:
    """torchwood takes our checkpoint by a policy; it reads Ed25519 alone."""
    policy = space.policy.with_name("auditor")
    policy.write_text(f"log {space.log_key}\nwitness foreign {space.witness_keys[0]}\nquorum foreign\n")
    assert int(space.run("policy", str(policy), stdin=space.checkpoint())) > 0


def check_changed(space: ForeignSpace) -> None:
    """Neither takes a checkpoint with another size."""
    text = space.checkpoint().decode()
    size = text.split("\n")[1]
    changed = text.replace(f"\n{size}\n", f"\n{int(size) + 1}\n", 1).encode()
    policy = space.policy.with_name("auditor")
    for arguments in (("verify", space.log_key, *space.witness_keys), ("policy", str(policy))):
        try:
            space.run(*arguments, stdin=changed)
        except RuntimeError:
            continue
        raise AssertionError(f"{arguments[0]} took a changed checkpoint")


def check_foreign_log(space: ForeignSpace) -> None:
    """Our witness cosigns a foreign log, and refuses it where it goes back or forks."""
    url = f"http://127.0.0.1:{space.connector.public_port}/witness/v1"
    lines = asked_text(space.connector, "/witness/v1/keys").splitlines()
    ours = [line.split()[2] for line in lines if line.startswith("witness ")]
    said = space.run("log", url, space.foreign_log[0], *ours)
    assert said == _GROWS + _REFUSED, said


def asked_text(process: Process, path: str) -> str:
    """An answer of the public listener."""
    with urllib.request.urlopen(f"http://127.0.0.1:{process.public_port}{path}") as answer:
        return str(answer.read().decode())


def _witnesses(space: ForeignSpace) -> list[dict[str, object]]:
    found: list[dict[str, object]] = asked(space.connector, "/audit/witnesses")["witnesses"]
    return found


STEPS: tuple[tuple[str, Callable[[ForeignSpace], None]], ...] = (
    ("a foreign witness cosigns our log", check_cosigned),
    ("a foreign verifier takes our checkpoint and its cosignatures", check_formats),
    ("another one takes it by an auditor's policy", check_policy),
    ("neither takes a changed checkpoint", check_changed),
    ("our witness cosigns a foreign log, and refuses its forks", check_foreign_log),
)


def main() -> int:
    """See the module's docstring."""
    MARK.parent.mkdir(parents=True, exist_ok=True)
    MARK.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        program = build(Path(folder))
        if program is None:
            MARK.touch()
            print("INTEROP-WITNESS NOT RUN: artifacts not reachable", flush=True)
            return NOT_REACHABLE
        failed = 0
        with foreign_space(program, Path(folder)) as space:
            for title, step in STEPS:
                try:
                    step(space)
                    print(f"PASS {title}", flush=True)
                except (AssertionError, RuntimeError, OSError) as error:
                    failed += 1
                    print(f"FAIL {title}: {error}", flush=True)
    print(f"{len(STEPS) - failed} passed, {failed} failed", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
