"""The life of the Flight process: started, watched, started anew when it ends, stopped.

What faces the network may be fed anything; when it takes more memory than it may, it is killed and another one started.
That costs the Flight calls that ran in it, and nothing else.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from connector.dataplane.flight.desk import Desk
from connector.errors import Conflict, HanseError
from connector.query.sandbox import environment, memory_of
from connector.telemetry import logger

_START_SECONDS = 60.0
_STOP_SECONDS = 3.0
_WATCH_SECONDS = 0.1
_CALLS_MAX = 256
_log = logger("flight")


@dataclass(frozen=True, slots=True)
class Listen:
    """Where Flight listens, and what proves who we are there (empty: no TLS)."""

    host: str
    port: int
    certificate: str = ""
    key: str = ""
    memory_mb: int = 768


class Front:
    """One Flight process and its successors."""

    def __init__(self, desk: Desk, listen: Listen) -> None:
        self._desk = desk
        self._listen = listen
        self._process: asyncio.subprocess.Process | None = None
        self._control: socket.socket | None = None
        self._calls: set[asyncio.Task[None]] = set()
        self._life: asyncio.Task[None] | None = None
        self.port = listen.port

    async def start(self) -> None:
        """Back when it listens. Conflict where it cannot, with the reason."""
        await self._spawn()
        self._life = asyncio.get_running_loop().create_task(self._live())

    async def stop(self) -> None:
        """End it; call it when no read runs any more."""
        if self._life is not None:
            self._life.cancel()
            await asyncio.gather(self._life, return_exceptions=True)
        await self._end(_STOP_SECONDS)

    @property
    def pid(self) -> int:
        """Its process id, 0 while there is none."""
        return self._process.pid if self._process is not None else 0

    async def _live(self) -> None:
        """Watch the process; start another when it has ended, soon at first, then less and less often."""
        pause = 0.1
        while True:
            assert self._process is not None
            await self._watch(self._process)
            _log.error("the Flight process ended", code=self._process.returncode)
            await self._end(0)
            while not await self._again(pause):
                pause = min(5.0, pause * 2)

    async def _again(self, pause: float) -> bool:
        await asyncio.sleep(pause)
        try:
            await self._spawn()
        except (HanseError, OSError, MemoryError) as error:  # it may be that there are no descriptors or processes left
            _log.error("no Flight process", reason=str(error))
            return False
        return True

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        while process.returncode is None:
            if memory_of(process.pid).resident // 2**20 > self._listen.memory_mb:
                _log.error("the Flight process takes too much memory", most_mb=self._listen.memory_mb)
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
            with suppress(TimeoutError):
                async with asyncio.timeout(_WATCH_SECONDS):
                    await process.wait()

    async def _spawn(self) -> None:
        ours, theirs = socket.socketpair()
        told = json.dumps(asdict(self._listen) | {"port": self.port})
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "connector.dataplane.flight.server", str(theirs.fileno()), told,
                pass_fds=(theirs.fileno(),), stdin=asyncio.subprocess.DEVNULL,
                env=environment(ARROW_DEFAULT_MEMORY_POOL="system", GRPC_VERBOSITY="NONE"),
                start_new_session=True,
            )  # fmt: skip
        ours.setblocking(False)
        self._control = ours
        await self._ready()
        asyncio.get_running_loop().add_reader(ours.fileno(), self._take)

    async def _ready(self) -> None:
        loop = asyncio.get_running_loop()
        assert self._control is not None
        said = b""
        with suppress(TimeoutError, OSError):
            async with asyncio.timeout(_START_SECONDS):
                said = await loop.sock_recv(self._control, 4096)
        told: dict[str, Any] = json.loads(said) if said else {"error": "it did not start"}
        if "port" not in told:
            await self._end(0)
            raise Conflict(
                f"Flight cannot listen on {self._listen.host}:{self._listen.port} ({told['error']}); "
                "look at HANSE_FLIGHT_PORT and the certificate"
            )
        self.port = int(told["port"])

    def _take(self) -> None:
        """A call has come: its channel is over the control socket."""
        assert self._control is not None
        try:
            data, descriptors, _, _ = socket.recv_fds(self._control, 1, 1)
        except BlockingIOError:
            return
        except OSError:
            data, descriptors = b"", []
        if not data:
            asyncio.get_running_loop().remove_reader(self._control.fileno())
            return
        for descriptor in descriptors:
            channel = socket.socket(fileno=descriptor)
            if len(self._calls) >= _CALLS_MAX:
                channel.close()
                continue
            call = asyncio.get_running_loop().create_task(self._desk.serve(channel))
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)

    async def _end(self, seconds: float) -> None:
        """The process gone, its calls too; politely within `seconds`."""
        process, self._process = self._process, None
        control, self._control = self._control, None
        if control is not None:
            asyncio.get_running_loop().remove_reader(control.fileno())
            control.close()  # it ends by itself then
        if process is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await process.wait()
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.send_signal(signal.SIGKILL)
                await process.wait()
        for call in tuple(self._calls):
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)
