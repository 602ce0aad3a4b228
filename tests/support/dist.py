"""`make dist`: build both wheels, and try them in empty environments.

1. Each wheel has the files of its packages that git lists, and no others but the built help.
2. The client's wheel alone: `import hanse`, `hanse --version` and `hanse --help`.
3. Both wheels: `hanse --help` lists the server's commands, and `hanse demo --once` succeeds in an empty home.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
DIST = ROOT / "dist"
_UV = Path(sys.executable).with_name("uv")
_FOLDERS = {"hanse": ["client/hanse"], "hanse_server": ["connector", "catalogue", "policies"]}
_HELP = "connector/help/site/"  # built, not committed
_SERVER_COMMANDS = ("connector", "catalogue", "demo")


def build(folder: Path) -> dict[str, Path]:
    """Build both wheels into a folder; return them by the name of their distribution."""
    shutil.rmtree(folder, ignore_errors=True)
    _run(str(_UV), "build", "--quiet", "--all-packages", "--wheel", "--out-dir", str(folder), at=ROOT)
    wheels = {wheel.name.partition("-")[0]: wheel for wheel in folder.glob("*.whl")}
    if wheels.keys() != _FOLDERS.keys():
        raise SystemExit(f"expected the wheels of {sorted(_FOLDERS)}, got {sorted(wheels)}")
    return wheels


def list_differences(name: str, wheel: Path) -> list[str]:
    """Return each file that only git or only the wheel has."""
    listed = _run("git", "ls-files", "-z", *_FOLDERS[name], at=ROOT).split("\0")
    wanted = {path.removeprefix("client/") for path in listed if path and (ROOT / path).is_file()}
    with zipfile.ZipFile(wheel) as archive:
        packed = {path for path in archive.namelist() if ".dist-info/" not in path and not path.startswith(_HELP)}
    return [f"not in the wheel: {path}" for path in sorted(wanted - packed)] + [
        f"not in git: {path}" for path in sorted(packed - wanted)
    ]


class Environment:
    """An empty virtual environment with an empty home and working directory."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bin = folder, folder / "venv" / "bin"
        for name in ("home", "work"):
            (folder / name).mkdir(parents=True)
        _run(str(_UV), "venv", "--quiet", "--python", sys.executable, str(folder / "venv"), at=folder)

    def install(self, *what: str) -> None:
        """Install packages, at the versions of the lock file."""
        constraints = self.folder / "constraints.txt"
        locked = ["export", "--quiet", "--frozen", "--all-packages", "--no-emit-workspace", "--no-hashes"]
        constraints.write_text(_run(str(_UV), *locked, at=ROOT))
        given = ["--python", str(self.bin / "python"), "--constraints", str(constraints)]
        _run(str(_UV), "pip", "install", "--quiet", *given, *what, at=self.folder)

    def run(self, program: str, *arguments: str) -> str:
        """Run a program of the environment; return its output. Nothing of this process's settings reaches it."""
        kept = {name: os.environ[name] for name in ("LANG", "TMPDIR") if name in os.environ}
        environment = {**kept, "HOME": str(self.folder / "home"), "PATH": f"{self.bin}:/usr/bin:/bin"}
        return _run(str(self.bin / program), *arguments, at=self.folder / "work", environment=environment)


def _run(*command: str, at: Path, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, cwd=at, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stdout[-4000:] + done.stderr[-4000:]
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{said}")
    return done.stdout


def _check_client(wheel: Path, folder: Path) -> None:
    alone = Environment(folder)
    alone.install(str(wheel))
    alone.run("python", "-c", "import hanse; hanse.connect; hanse.HanseError")
    version = wheel.name.split("-")[1]
    if (said := alone.run("hanse", "--version").strip()) != f"hanse {version}":
        raise SystemExit(f"expected `hanse --version` to print hanse {version}, got {said!r}")
    if not {"query", "stream", "negotiate"} <= set(alone.run("hanse", "--help").split()):
        raise SystemExit("expected `hanse --help` to list the client's commands")


def _check_server(wheels: dict[str, Path], folder: Path) -> None:
    whole = Environment(folder)
    whole.install(*map(str, wheels.values()))
    if not set(_SERVER_COMMANDS) <= set(whole.run("hanse", "--help").split()):
        raise SystemExit(f"expected `hanse --help` to list {', '.join(_SERVER_COMMANDS)}")
    packages = whole.run("python", "-c", "from connector.demo.data import PACKAGES; print(*PACKAGES)").split()
    whole.install("--no-deps", *packages)
    whole.run("python", "-c", "from connector.help.site import FOLDER; assert (FOLDER / 'index.html').is_file()")
    print(whole.run("hanse", "demo", "--once", "--port", os.environ.get("HANSE_DEMO_PORT", "18700")).splitlines()[-1])


def main() -> None:
    wheels = build(DIST)
    for name, wheel in wheels.items():
        if differences := list_differences(name, wheel):
            raise SystemExit("\n".join([f"{wheel.name}:", *differences]))
    with tempfile.TemporaryDirectory() as folder:
        _check_client(wheels["hanse"], Path(folder) / "client")
        _check_server(wheels, Path(folder) / "server")
    print(*(wheel.relative_to(ROOT) for wheel in wheels.values()), sep="\n")


if __name__ == "__main__":
    main()
