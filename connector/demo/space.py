"""Processes of the demo's data space: a catalogue, three owners and a gigafactory, each with its own directory.

They are configured as by an operator: with environment variables and command lines.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from connector.demo.data import OWNERS
from connector.errors import Unavailable

PORT_SETTING = "HANSE_DEMO_PORT"
DEFAULT_PORT = 8700
_START_SECONDS = 60.0
_STOP_SECONDS = 10.0
TITLES = {
    "north": "North Regional Health and Mobility Trust",
    "south": "South Regional Health and Mobility Trust",
    "west": "West Regional Health and Mobility Trust",
    "forge": "Forge Gigafactory",
}
COUNTRIES = {"north": "DE", "south": "IT", "west": "NL", "forge": "FI"}


@dataclass(slots=True)
class DemoMember:
    """One process of the data space, its addresses and its directory."""

    name: str
    public_port: int
    management_port: int
    directory: Path
    process: subprocess.Popen[bytes] | None = None
    front_port: int = 0  # port of a proxy in front of its public listener, if any

    @property
    def url(self) -> str:
        """The public base URL."""
        return f"http://127.0.0.1:{self.front_port or self.public_port}"

    @property
    def management(self) -> str:
        return f"http://127.0.0.1:{self.management_port}"

    @property
    def did(self) -> str:
        return f"did:web:127.0.0.1%3A{self.front_port or self.public_port}"

    @property
    def token(self) -> str:
        return (self.directory / "admin.token").read_text().strip()

    @property
    def log(self) -> Path:
        return self.directory / "log.txt"


@dataclass(slots=True)
class DemoSpace:
    """The demo's data space, under one directory and one range of ports."""

    directory: Path
    port: int = DEFAULT_PORT
    members: dict[str, DemoMember] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for place, name in enumerate(("catalogue", *OWNERS, "forge")):
            public, management = self.port + 2 * place, self.port + 2 * place + 1
            if name == "catalogue":
                management = public
            self.members[name] = DemoMember(name, public, management, self.directory / name)

    @property
    def catalogue(self) -> DemoMember:
        return self.members["catalogue"]

    @property
    def connectors(self) -> list[DemoMember]:
        return [member for name, member in self.members.items() if name != "catalogue"]

    def check_ports(self) -> None:
        """Check that all ports are free. Raises: Unavailable, which names the port and the setting."""
        for member in self.members.values():
            for port in {member.public_port, member.management_port}:
                with socket.socket() as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    try:
                        probe.bind(("127.0.0.1", port))
                    except OSError:
                        raise Unavailable(
                            f"expected port {port} to be free for {member.name}, got a port in use; stop what uses it, "
                            f"or move the demo with {PORT_SETTING} (now {self.port}, ten ports from there)"
                        ) from None

    def start(self, name: str) -> None:
        """Start one process without waiting until it is ready; see `wait`."""
        member = self.members[name]
        member.directory.mkdir(parents=True, exist_ok=True)
        package = "catalogue" if name == "catalogue" else "connector"
        settings = self._catalogue_settings() if name == "catalogue" else self._connector_settings(member)
        plain = {key: value for key, value in os.environ.items() if not key.startswith("HANSE_")}
        with member.log.open("ab") as log:
            member.process = subprocess.Popen(  # noqa: S603  # our own interpreter and module
                [sys.executable, "-m", package, "serve"],
                env={**plain, **settings},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait(self, *names: str) -> None:
        """Wait until these processes are ready. Raises: Unavailable with the end of the log if one ends or is too
        slow."""
        for name in names or self.members:
            self._wait_for(self.members[name])

    def kill(self, name: str) -> None:
        """Kill a process and its workers with SIGKILL, like a power cut."""
        process = self.members[name].process
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def stop(self) -> None:
        """Terminate every process; kill those that do not end in time."""
        running = [member.process for member in self.members.values() if member.process is not None]
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        deadline = time.monotonic() + _STOP_SECONDS
        for process in running:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def memory(self) -> dict[str, tuple[int, int]]:
        """Map each name to the resident bytes of its main process and of its process tree."""
        children = _read_children()
        found = {}
        for name, member in self.members.items():
            if member.process is not None:
                main = read_resident_bytes(member.process.pid)
                found[name] = (
                    main,
                    main + sum(read_resident_bytes(pid) for pid in _descendants(member.process.pid, children)),
                )
        return found

    def _connector_settings(self, member: DemoMember) -> dict[str, str]:
        data = self.directory / "data" / member.name
        return {
            "HANSE_NAME": member.name,
            "HANSE_TITLE": TITLES[member.name],
            "HANSE_DATA_DIR": str(member.directory),
            "HANSE_SOURCE_ROOTS": str(data),
            "HANSE_PUBLIC_PORT": str(member.public_port),
            "HANSE_PUBLIC_URL": member.url,
            "HANSE_MANAGEMENT_PORT": str(member.management_port),
            "HANSE_TRUST_ANCHOR": self.catalogue.did,
            "HANSE_CATALOGUE_URL": self.catalogue.url,
            "HANSE_ADMIN_TOKEN_FILE": str(member.directory / "admin.token"),
            "HANSE_REGISTER_MAX_AGE": "5",
            **_LOOPBACK,
        }

    def _catalogue_settings(self) -> dict[str, str]:
        return {
            "HANSE_DATA_DIR": str(self.catalogue.directory),
            "HANSE_TITLE": "Harbour, the catalogue of the demo data space",
            "HANSE_PUBLIC_PORT": str(self.catalogue.public_port),
            "HANSE_ADMIN_TOKEN_FILE": str(self.catalogue.directory / "admin.token"),
            **_LOOPBACK,
        }

    def _wait_for(self, member: DemoMember) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            if member.process is not None and member.process.poll() is not None:
                raise Unavailable(
                    f"{member.name} ended instead of starting; the end of {member.log}:\n{read_tail(member.log)}"
                )
            if _is_ready(member.management_port):
                return
            time.sleep(0.05)
        raise Unavailable(
            f"{member.name} was not ready after {_START_SECONDS:.0f} s; the end of its log:\n{read_tail(member.log)}"
        )


_LOOPBACK: Mapping[str, str] = {
    "HANSE_ALLOW_PRIVATE": "127.0.0.0/8",
    "HANSE_INSECURE_HTTP": "true",
    "HANSE_LOG_JSON": "true",
}


def read_tail(path: Path, lines: int = 12) -> str:
    """Return the last lines of a log."""
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else "(no log)"


def read_resident_bytes(pid: int) -> int:
    """Return the resident bytes of a process; 0 if it has ended."""
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def _is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/health/ready")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _read_children() -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                found.setdefault(parent, []).append(int(entry.name))
    return found


def _descendants(pid: int, children: Mapping[int, list[int]]) -> Iterator[int]:
    for child in children.get(pid, ()):
        yield child
        yield from _descendants(child, children)
