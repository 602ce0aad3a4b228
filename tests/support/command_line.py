"""The command `hanse` as a person starts it: a process, its file of a login, and a browser that a test acts for."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE
from dataclasses import dataclass
from pathlib import Path

SCRIPT = "#!/bin/sh\nprintf %s \"$1\" > '{0}.part' && mv '{0}.part' '{0}'\n"


@dataclass
class CommandLine:
    """A person's command line: its files, and a browser that writes down which address it is to open."""

    base: str
    folder: Path

    @property
    def file(self) -> Path:
        return self.folder / "config" / "client.json"

    @property
    def saved(self) -> dict[str, str]:
        return dict(json.loads(self.file.read_text()))

    async def start(self, *words: str, display: bool = True) -> asyncio.subprocess.Process:
        script, opened = self.folder / "browser", self.folder / "opened"
        script.write_text(SCRIPT.format(opened))
        script.chmod(0o755)
        unset = ("HANSE_", "DISPLAY", "WAYLAND_DISPLAY", "BROWSER")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(unset)}
        environment |= {"HANSE_CONFIG": str(self.file), "HANSE_URL": self.base, "COLUMNS": "1000"}
        environment |= {"BROWSER": f"{script} %s"} if display else {}
        return await asyncio.create_subprocess_exec(
            Path(sys.executable).with_name("hanse"), *words, env=environment, stdin=DEVNULL, stdout=PIPE, stderr=PIPE
        )

    async def run(self, *words: str) -> tuple[int | None, str]:
        """Run a command; its exit code and all that it wrote."""
        process = await self.start(*words)
        return await finished(process)

    async def address(self, process: asyncio.subprocess.Process) -> str:
        """The address that the browser is to open."""
        opened = self.folder / "opened"
        async with asyncio.timeout(60):
            while not opened.exists():
                assert process.returncode is None, await finished(process)
                await asyncio.sleep(0.05)
        return opened.read_text()


async def finished(process: asyncio.subprocess.Process) -> tuple[int | None, str]:
    async with asyncio.timeout(120):
        out, err = await process.communicate()
    return process.returncode, (out + err).decode()
