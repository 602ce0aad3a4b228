"""The life of a connector's process: migrate, bind both ports, serve, drain. Knows the parts only as a whole."""

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
from connector.errors import BadInput, Conflict, HanseError
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

# Seconds that a thread may keep the others waiting. The usual 0.005 is longer than most of our transactions: the loop,
# which answers everybody, would wait for a whole one in the writer's thread.
_TURN = 0.001
_STOPPING = "the connector is shutting down; go on from here in a moment"
_STOP_SECONDS = 40.0  # what drains has ended by then: the servers wait 30 s for connections, and reads have 5 s
_log = logger("connector")


@asynccontextmanager
async def running(parts: Services, *, before: str = "") -> AsyncIterator[None]:
    """Every worker of the connector, for as long as the block lasts; then drained and closed. `before`: the last run
    that had our data directory.

    LogBroken where the keys are not those of the database, or it is older than we know: nothing has been served or
    signed by then.
    """
    await parts.store.read(partial(check_key, signer=parts.signer, former=parts.former))
    await parts.store.read(parts.log_mark.check)
    await tell_of_another_self(parts)
    leases = Leases(parts.store, run=parts.reads.run)
    sequencing = asyncio.create_task(parts.sequencer.run())
    upkeep = asyncio.create_task(parts.upkeep.run())
    counting = asyncio.create_task(parts.store.count_refusals())
    announcing = asyncio.create_task(parts.announcer.run())
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
        if parts.flight is not None:
            await parts.flight.stop()
        await leases.stop()
        await parts.sender.stop()
        await parts.relay.stop()
        await parts.pool.close()
        parts.outside.close()
        parts.registry.close()
        counting.cancel()
        with contextlib.suppress(HanseError):
            await parts.store.tell_counted()
        with contextlib.suppress(HanseError):
            await parts.sequencer.settle()
        sequencing.cancel()
        await asyncio.gather(sequencing, upkeep, counting, announcing, return_exceptions=True)
        await parts.net.close()
        parts.store.close()


async def tell_of_another_self(parts: Services) -> None:
    """Say which agreements are those of who we were: their other sides know us by another DID, and at its address."""
    for before, count in sorted((await parts.store.read(lambda tx: tx.agreements.signed_as())).items()):
        if before != parts.participant:
            _log.warning(
                "signed as another participant",
                agreements=count,
                signed_as=before,
                now=parts.participant,
                reason="to their other sides we are another one now, who has not signed; set HANSE_PUBLIC_URL (or "
                "HANSE_PARTICIPANT_ID) to what it was, or agree anew (docs/operations.md)",
            )


async def _first_token(parts: Services) -> None:
    await parts.tokens.first(partial(_hand_over, parts.settings.admin_token_file))


def _hand_over(target: Path | None, text: str) -> None:
    """The first token to the operator: into its file, whole or not at all, or to standard error."""
    if target is None:
        print(f"admin token, shown this once: {text}", file=sys.stderr, flush=True)  # noqa: T201  # for the operator
        return
    atomic_files.write(target, text + "\n")


async def serve(settings: Settings) -> None:
    """Migrate, bind both ports, serve until SIGTERM or SIGINT, drain. Conflict names a port or a data directory that is
    in use, BadInput a certificate or a folder that cannot be used, Busy a database that does not answer, LogBroken one
    that is older than we know, at the start or at any time later.
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
        # What is there now stays: looked through with all else, it held up everybody for 100 ms now and then.
        gc.collect()
        gc.freeze()
        async with running(parts, before=_follow(lock, parts.reads.run)):
            _log.info("serving", public=settings.root_url, console=settings.console_url)
            watching = asyncio.create_task(_stop_when_lost(parts.sequencer, stop))
            await asyncio.gather(servers[0].serve([public]), servers[1].serve([private]))
            watching.cancel()
        if parts.sequencer.lost.is_set():
            raise LogBroken(parts.sequencer.problem)


class _Server(TlsServer):
    """A server that leaves signals to us: there are two of them in the process."""

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
    """What a signal does, for others that have to stop all."""
    drained: list[asyncio.Task[None]] = []

    def stop() -> None:
        if not drained:
            _end_within(_STOP_SECONDS)
        # At once: the servers wait for their connections, and those for the ends of their streams.
        drained.append(asyncio.ensure_future(parts.reads.drain(_STOPPING)))
        parts.receiving.drain(_STOPPING)
        parts.feed.close()
        for server in servers:
            server.should_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    return stop


async def _stop_when_lost(sequencer: Sequencer, stop: Callable[[], None]) -> None:
    """An older database knows nothing of what was revoked since: nothing is served from it any longer."""
    await sequencer.lost.wait()
    stop()


def _renew_on_signal(public: uvicorn.Server, parts: Services) -> None:
    """SIGHUP has the certificate read anew; what cannot be used changes nothing."""
    certificate, key = parts.settings.tls_certificate, parts.settings.tls_key

    def renew() -> None:
        try:
            _check_certificate(certificate, key)
        except BadInput as error:
            _log.error("certificate", reason=f"{error.message}; the one before stays")
            return
        if certificate is not None and public.config.ssl is not None:
            public.config.ssl.load_cert_chain(certificate, key)
        if parts.flight is not None:
            parts.flight.renew()
        _log.info("certificate", path=str(certificate or "none is set"))

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, renew)


def _end_within(seconds: float) -> None:
    """End this process then, whatever hangs: a thread in the database or on a disk keeps Python from its end for ever.

    Nothing is lost that would be kept otherwise: what is committed is, and nobody was told of anything else.
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
    """BadInput where the public listener could not speak TLS with these."""
    if certificate is None:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    except OSError as error:  # an SSLError is one, too
        raise BadInput(
            "HANSE_TLS_CERTIFICATE: expected a PEM file that can be read, with its key there or in HANSE_TLS_KEY, "
            f"came {certificate}{f' and {key}' if key else ''}: {error.strerror or error}"
        ) from None


@contextlib.contextmanager
def alone(settings: Settings) -> Iterator[TextIO]:
    """Keep the data directory, and an SQLite database wherever it is, this process's alone for as long as the block
    lasts; the file that is locked in the directory. Conflict where one is another's: two would take each other's reads
    for left over, and each other's files for their own, and hear nothing of what the other one revokes."""
    directory, database = settings.data_dir, sqlite_file(settings.database)
    with contextlib.ExitStack() as held:
        own = held.enter_context(acquire_lock(directory / "serve.lock", "HANSE_DATA_DIR", "give this one a directory"))
        if database is not None:
            lock = database.with_name(f"{database.name}.lock")
            held.enter_context(
                acquire_lock(lock, "HANSE_DATABASE_URL", "take PostgreSQL for both, or give this one a file")
            )
        yield own


def _follow(lock: TextIO, run: str) -> str:
    """Leave our name in the directory; whose was there, which is over."""
    lock.seek(0)
    before = lock.read(200)
    with contextlib.suppress(OSError):  # without it, what that one has left is known as such a minute later
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
        raise Conflict(
            f"port {port} on {host} cannot be bound ({error.strerror}); "
            f"set HANSE_{listener}_{'PORT' if there else 'HOST'} to another one"
        ) from None
    made.setblocking(False)
    return made
