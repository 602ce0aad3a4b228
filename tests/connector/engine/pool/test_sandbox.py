"""What a confined process can still do: its own work, and nothing to anybody else."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

_CODE = """
import json, os, socket, sys
from connector.engine.pool.sandbox import confine
readable, writable, port, parent = json.loads(sys.argv[1])
assert confine(readable=[readable], writable=[writable])

def attempt(act):
    try:
        act()
    except OSError as error:
        return type(error).__name__
    return "done"

print(json.dumps({
    "read allowed": attempt(lambda: open(readable + "/a").read()),
    "write allowed": attempt(lambda: open(writable + "/b", "w").write("x")),
    "write readable": attempt(lambda: open(readable + "/a", "w")),
    "read passwords": attempt(lambda: open("/etc/passwd").read()),
    "read outside": attempt(lambda: open(os.path.dirname(readable) + "/key").read()),
    "list root": attempt(lambda: os.listdir("/")),
    "environment of parent": attempt(lambda: open(f"/proc/{parent}/environ").read()),
    "connect": attempt(lambda: socket.create_connection(("127.0.0.1", port), timeout=2)),
    "listen": attempt(lambda: socket.create_server(("127.0.0.1", 0))),
    "signal": attempt(lambda: os.kill(parent, 0)),
    "import": attempt(lambda: __import__("duckdb").sql("SELECT 1").fetchall()),
}))
"""

EXPECTED = {
    "read allowed": "done",
    "write allowed": "done",
    "write readable": "PermissionError",
    "read passwords": "PermissionError",
    "read outside": "PermissionError",
    "list root": "PermissionError",
    "environment of parent": "PermissionError",
    "connect": "PermissionError",
    "listen": "PermissionError",
    "signal": "PermissionError",
    "import": "done",
}


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    top = tmp_path_factory.mktemp("sandbox")
    for name in ("readable", "writable"):
        (top / name).mkdir()
    (top / "readable" / "a").write_text("a")
    (top / "key").write_text("secret")
    with socket.create_server(("127.0.0.1", 0)) as server:
        asked = [str(top / "readable"), str(top / "writable"), server.getsockname()[1], parent_pid()]
        found = subprocess.run(
            [sys.executable, "-c", _CODE, json.dumps(asked)], capture_output=True, text=True, check=False
        )
    assert found.returncode == 0, found.stderr
    outcome: dict[str, str] = json.loads(found.stdout)
    return outcome


def parent_pid() -> int:
    return int(Path("/proc/self/stat").read_text().split()[0])


@pytest.mark.parametrize("name", list(EXPECTED))
def test_a_confined_process_gets_only_what_it_needs(outcome: dict[str, str], name: str) -> None:
    assert outcome[name] == EXPECTED[name]
