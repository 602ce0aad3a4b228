"""The life of a connector's process: migrate, bind both ports, serve, drain."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import signal
import socket
import ssl
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TextIO

import uvicorn
from starlette.types import ASGIApp

from connector import VERSION
from connector.app import management_app, public_app
from connector.audit.head_file import LogBroken
from connector.audit.log import Sequencer, check_key
from connector.dataplane.http.vectored_body import Protocol
from connector.dataplane.running_reads import Leases, close_left_over
from connector.errors import ConnectorError, Invalid, WrongState
from connector.events import ServiceStarted
from connector.infra import atomic_files
from connector.infra.http import http_limits
from connector.infra.http.tls_server import TlsServer
from connector.infra.lock_file import acquire_lock
from connector.services import Services, build
from connector.setting_types import make_folder
from connector.settings import Settings
from connector.store.migrate import sqlite_file, upgrade
from connector.telemetry import Observed, logger, set_up_logging

# The interpreter's thread switch interval, in seconds. The default of 0.005 is longer than most of our transactions, so
# the event loop would wait for whole transactions of the writer's thread.
_TURN = 0.001
_STOPPING = "the connector is shutting down; continue from here in a moment"
_STOP_SECONDS = 40.0  # draining has ended by then: servers wait 30 s for connections, reads get 5 s
_log = logger("connector")


@asynccontextmanager
async def running(parts: Services, *, before: str = "") -> AsyncIterator[None]:
    """Run all background workers of the connector during the block, then drain and close them.

    `before` is the id of the last run on our data directory. Raises: LogBroken, before anything is served or signed, if
    the keys do not fit the database or the database is older than the newest known head.
    """
    await parts.store.read(partial(check_key, signer=parts.signer, former=parts.former))
    await parts.store.read(parts.log_mark.check)
    await warn_of_former_identity(parts)
    leases = Leases(parts.store, run=parts.reads.run)
    sequencing = asyncio.create_task(parts.sequencer.run())
    upkeep = asyncio.create_task(parts.upkeep.run())
    counting = asyncio.create_task(parts.store.run_refusal_counter())
    announcing = asyncio.create_task(parts.announcer.run())
    witnessing = [asyncio.create_task(parts.known_logs.run()), asyncio.create_task(parts.cosigning.run())]
    await parts.outside.start()
    await parts.pool.start()
    await parts.sender.start()
    await parts.relay.start()
    await close_left_over(parts.store, instance=parts.instance, before=before)
    await leases.start()
    await parts.receiving.start()
    await parts.registry.start()
    await parts.store.write(
        lambda tx: tx.publish(ServiceStarted(actor=parts.participant, detail={"version": VERSION, "pid": os.getpid()}))
    )
    await _first_token(parts)
    try:
        if parts.flight is not None:
            await parts.flight.start()
            _log.info("flight", location=parts.addresses.flight)
        yield
    finally:
        await parts.reads.drain(_STOPPING)
        upkeep.cancel()
        announcing.cancel()
        for task in witnessing:
            task.cancel()
        if parts.flight is not None:
            await parts.flight.stop()
        await leases.stop()
        await parts.sender.stop()
        await parts.relay.stop()
        await parts.pool.close()
        parts.outside.close()
        parts.registry.close()
        parts.uploads.close()
        counting.cancel()
        with contextlib.suppress(ConnectorError):
            await parts.store.record_refusal_counts()
        with contextlib.suppress(ConnectorError):
            await parts.sequencer.settle()
        sequencing.cancel()
        await asyncio.gather(sequencing, upkeep, counting, announcing, *witnessing, return_exceptions=True)
        await parts.net.close()
        parts.store.close()


async def warn_of_former_identity(parts: Services) -> None:
    """Log the agreements signed under our former DID, as their counterparties do not know the new DID."""
    for before, count in sorted((await parts.store.read(lambda tx: tx.agreements.count_by_signer())).items()):
        if before != parts.participant:
            _log.warning(
                "signed as another participant",
                agreements=count,
                signed_as=before,
                now=parts.participant,
                reason="their counterparties know only the former DID; set HANSE_PUBLIC_URL (or "
                "HANSE_PARTICIPANT_ID) to "
                "the former value, or negotiate again (docs/operations.md)",
            )


async def _first_token(parts: Services) -> None:
    await parts.tokens.first(partial(_hand_over, parts.settings.admin_token_file))


def _hand_over(target: Path | None, text: str) -> None:
    """Write the first token to its file, atomically, or to standard error."""
    if target is None:
        print(f"admin token, shown this once: {text}", file=sys.stderr, flush=True)  # noqa: T201  # for the operator
        return
    atomic_files.write(target, text + "\n")


async def serve(settings: Settings) -> None:
    """Migrate, bind both ports, serve until SIGTERM or SIGINT, then drain.

    Raises: WrongState for a port or data directory in use, Invalid for an unusable certificate or folder, Unavailable
    for a database that does not answer, LogBroken for a database older than the newest known head, at the start or
    later.
    """
    set_up_logging(level=settings.log_level, as_json=settings.log_json)
    _check_certificate(settings.tls_certificate, settings.tls_key)
    sys.setswitchinterval(_TURN)
    http_limits.raise_descriptors()
    http_limits.return_large_blocks()
    make_folder(settings.data_dir, "HANSE_DATA_DIR", mode=0o700)
    if settings.converted_dir is not None:
        make_folder(settings.converted_dir, "HANSE_CONVERTED_DIR")
    if settings.admin_token_file is not None:
        make_folder(settings.admin_token_file.parent, "HANSE_ADMIN_TOKEN_FILE")
    with contextlib.ExitStack() as bound:
        lock = bound.enter_context(alone(settings))
        public = bound.enter_context(_bind(settings.public_host, settings.public_port, "PUBLIC"))
        private = bound.enter_context(_bind(settings.management_host, settings.management_port, "MANAGEMENT"))
        await asyncio.to_thread(upgrade, settings.database)
        parts = build(settings)
        servers = [
            _server(
                Observed(public_app(parts), listener="public", metrics=parts.metrics),
                certificate=settings.tls_certificate,
                key=settings.tls_key,
            ),
            _server(Observed(management_app(parts), listener="management", metrics=parts.metrics)),
        ]
        stop = _stop_on_signals(servers, parts)
        _renew_on_signal(servers[0], parts)
        # Exclude all current objects from garbage collection, which otherwise blocked the loop for 100 ms at times.
        gc.collect()
        gc.freeze()
        async with running(parts, before=_exchange_run_id(lock, parts.reads.run)):
            _log.info("serving", public=settings.root_url, console=settings.console_url)
            watching = asyncio.create_task(_stop_when_lost(parts.sequencer, stop))
            await asyncio.gather(servers[0].serve([public]), servers[1].serve([private]))
            watching.cancel()
        if parts.sequencer.lost.is_set():
            raise LogBroken(parts.sequencer.problem)


class _Server(TlsServer):
    """A server that leaves signals to `_stop_on_signals`, as the process has two servers."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _server(app: ASGIApp, *, certificate: Path | None = None, key: Path | None = None) -> _Server:
    return _Server(
        uvicorn.Config(
            app,
            ssl_certfile=certificate,
            ssl_keyfile=key,
            http=Protocol,
            loop="uvloop",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=30,
            backlog=512,
        )
    )


def _stop_on_signals(servers: Sequence[uvicorn.Server], parts: Services) -> Callable[[], None]:
    """Handle SIGTERM and SIGINT; return the function that stops the process."""
    drained: list[asyncio.Task[None]] = []

    def stop() -> None:
        if not drained:
            _end_within(_STOP_SECONDS)
        # At the same time: servers wait for their connections, and those for the ends of their streams.
        drained.append(asyncio.ensure_future(parts.reads.drain(_STOPPING)))
        parts.receiving.drain(_STOPPING)
        parts.feed.close()
        for server in servers:
            server.should_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    return stop


async def _stop_when_lost(sequencer: Sequencer, stop: Callable[[], None]) -> None:
    """Stop serving when the log is lost: an older database does not know what was revoked since."""
    await sequencer.lost.wait()
    stop()


def _renew_on_signal(public: uvicorn.Server, parts: Services) -> None:
    """Reload the certificate on SIGHUP; keep the old one if the new one is unusable."""
    certificate, key = parts.settings.tls_certificate, parts.settings.tls_key

    def renew() -> None:
        try:
            _check_certificate(certificate, key)
        except Invalid as error:
            _log.error("certificate", reason=f"{error.message}; the old certificate stays in use")
            return
        if certificate is not None and public.config.ssl is not None:
            public.config.ssl.load_cert_chain(certificate, key)
        if parts.flight is not None:
            parts.flight.renew()
        _log.info("certificate", path=str(certificate or "none is set"))

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, renew)


def _end_within(seconds: float) -> None:
    """Exit this process after `seconds`, as a thread that hangs in the database or on a disk would block the exit.

    No data is lost: only committed changes were acknowledged.
    """

    def end() -> None:
        try:
            _log.error("ended before all was closed", seconds=seconds, reason="the database or a disk does not answer")
        finally:
            os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


def _check_certificate(certificate: Path | None, key: Path | None) -> None:
    """Check that the public listener can use the certificate and key. Raises: Invalid."""
    if certificate is None:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    except OSError as error:  # SSLError is a subclass
        raise Invalid(
            "HANSE_TLS_CERTIFICATE: expected a readable PEM file, with its key in it or in HANSE_TLS_KEY, "
            f"got {certificate}{f' and {key}' if key else ''}: {error.strerror or error}"
        ) from None


@contextlib.contextmanager
def alone(settings: Settings) -> Iterator[TextIO]:
    """Lock the data directory and a SQLite database during the block; yield the directory's lock file.

    Two processes would clean up each other's reads and files, and would miss each other's revocations. Raises:
    WrongState if another process holds a lock.
    """
    directory, database = settings.data_dir, sqlite_file(settings.database)
    with contextlib.ExitStack() as held:
        own = held.enter_context(acquire_lock(directory / "serve.lock", "HANSE_DATA_DIR", "give this one a directory"))
        if database is not None:
            lock = database.with_name(f"{database.name}.lock")
            held.enter_context(
                acquire_lock(lock, "HANSE_DATABASE_URL", "take PostgreSQL for both, or give this one a file")
            )
        yield own


def _exchange_run_id(lock: TextIO, run: str) -> str:
    """Write our run id to the lock file; return the id of the last run, which has ended."""
    lock.seek(0)
    before = lock.read(200)
    with contextlib.suppress(OSError):  # without it, the leftovers of the last run are recognised a minute later
        lock.truncate(0)
        lock.write(run)
        lock.flush()
    return before


def _bind(host: str, port: int, listener: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
        made.listen(512)
    except OSError as error:
        made.close()
        there = error.errno in (errno.EADDRINUSE, errno.EACCES)
        raise WrongState(
            f"port {port} on {host} cannot be bound ({error.strerror}); "
            f"set HANSE_{listener}_{'PORT' if there else 'HOST'} to another value"
        ) from None
    made.setblocking(False)
    return made
