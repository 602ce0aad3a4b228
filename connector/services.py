"""The composition root: builds all services of a connector from its settings. Nothing runs yet."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from joserfc.jwk import ECKey

from connector.audit.cosigning import Cosigning
from connector.audit.head_file import HeadFile
from connector.audit.log import AuditLog, Sequencer
from connector.audit.signed_note import Signer, origin_of, read_name
from connector.dataplane.admission import Reads
from connector.dataplane.cache.stream_cache import PreparedStreams
from connector.dataplane.data_address import FLIGHT_FORMAT, Addresses
from connector.dataplane.flight.flight_queries import FlightQueries
from connector.dataplane.flight.listener import FlightServer, ListenOptions
from connector.dataplane.push.push_receiver import PushReceiver, ReceiveLimits
from connector.dataplane.push.push_sender import push
from connector.dataplane.push.received_files import make_arrival_folder
from connector.dataplane.push.target import Target
from connector.datasets.external import Outside
from connector.datasets.registry import CELL_MAX, COLUMNS_SHOWN, FirstRows, Registry, ReportProgress
from connector.datasets.uploads import UploadLimits, Uploads
from connector.dsp import process, process_limits
from connector.dsp.agreements import AgreementService
from connector.dsp.catalog import Catalog
from connector.dsp.duty_upkeep import DutyLedger, Upkeep
from connector.dsp.messages import DataAddress, address_of
from connector.dsp.negotiation import NegotiationService
from connector.dsp.participants import ParticipantDirectory
from connector.dsp.protocol_client import ProtocolClient
from connector.dsp.transfer import FORMATS, PULL, TransferService
from connector.engine.pool.pool import Pool
from connector.engine.pool.protocol import Job, Limits, Relation
from connector.events import Bus, CheckpointRefused
from connector.federation.coordinator import Coordinator
from connector.federation.tables import Holdings
from connector.identity import did, keys
from connector.identity.credentials.remote_wallet import RemoteWallet
from connector.identity.credentials.rules import load_rules
from connector.identity.credentials.verifier import Verifier
from connector.identity.identity_service import Identity, OwnWallet, Wallet
from connector.identity.member_register import MemberRegister
from connector.identity.openid.login import LoginClient
from connector.infra.net.http_client import AddressGuard, HttpClient
from connector.management import (
    events,
)
from connector.management.notify.catalogue import Announcer
from connector.management.notify.webhooks import Webhooks
from connector.management.sign_on.auth import Tokens
from connector.management.sign_on.people import SignOn
from connector.management.sign_on.personal_tokens import PersonalTokens
from connector.management.sign_on.service_clients import ServiceClients
from connector.management.sign_on.sign_on_file import read_sign_on_file
from connector.management.sign_on.workloads import WorkloadTokens
from connector.offers.offers import Offers
from connector.offers.preview import OwnersView
from connector.offers.version_effects import VersionChecks
from connector.outbox.sender import Sender
from connector.settings import Settings
from connector.store import EventRelay, Store, Transaction
from connector.store.migrate import sqlite_file
from connector.store.tables import Transfer
from connector.telemetry import Metrics
from connector.usage import fact_sources
from connector.usage.credential_facts import CredentialFacts
from connector.usage.fact_collector import FactCollector
from connector.usage.grants import Grants
from connector.usage.held_agreement import EndReason
from connector.usage.shared_callers import SharedCallers
from connector.witness.known_logs import PREFIX, KnownLog, KnownLogs, SpaceMember, load_policy, publish_keys
from connector.witness.notes import ED25519, Checkpoint, Cosigner, read_key
from connector.witness.witness import Answer, Witness
from policies import plugins
from policies.contracts.columns import quote_identifier

_CONVERT_TEMP_MB = 4096
_BRIEF_SECONDS = 60.0  # for the first rows of a file
_NO_REGISTER = {"register": "of which this connector has none, as HANSE_TRUST_ANCHOR is not set"}


@dataclass(frozen=True, slots=True)
class Services:
    """All services of a connector."""

    settings: Settings
    participant: str
    instance: str  # the name of this process, the same at every start
    store: Store
    relay: EventRelay
    metrics: Metrics
    net: HttpClient
    resolver: did.DidResolver
    wallet: Wallet
    identity: Identity
    trust: MemberRegister
    known: FactCollector
    tokens: Tokens
    personal: PersonalTokens
    sign_on: SignOn
    workloads: WorkloadTokens
    pool: Pool
    outside: Outside
    registry: Registry
    uploads: Uploads
    offers: Offers
    grants: Grants
    reads: Reads
    owners_view: OwnersView
    addresses: Addresses
    receiving: PushReceiver
    flight: FlightServer | None
    sender: Sender
    negotiations: NegotiationService
    transfers: TransferService
    agreements: AgreementService
    ledger: DutyLedger
    upkeep: Upkeep
    catalog: Catalog
    partners: ParticipantDirectory
    webhooks: Webhooks
    announcer: Announcer
    feed: events.Feed
    signer: Signer
    former: tuple[Signer, ...]  # keys that sign nothing any more
    log_mark: HeadFile
    sequencer: Sequencer
    log: AuditLog
    known_logs: KnownLogs
    witness: Witness | None
    cosigning: Cosigning
    published_keys: Callable[[], Awaitable[str]]
    holdings: Holdings
    coordinator: Coordinator


class Profiles:
    """The engine of the dataset registry: profiles and conversions in worker processes."""

    def __init__(self, pool: Pool, settings: Settings) -> None:
        self._pool = pool
        self._limits = Limits(
            seconds=600.0, total_seconds=3600.0, memory_mb=settings.worker_memory_mb, temp_mb=_CONVERT_TEMP_MB
        )

    async def profile(
        self, kind: str, files: Sequence[Mapping[str, Any]], options: Mapping[str, Any], *, told: ReportProgress
    ) -> Mapping[str, Any]:
        found = await self._pool.ask(self._job("profile", kind, files, options, {}), on_progress=told)
        return {
            "schema": [{"name": column["name"], "type": column["type"]} for column in found["columns"]],
            "rows": found["rows"],
            "bytes": found["bytes"],
            "columns": {
                column["name"]: {key: value for key, value in column.items() if key not in ("name", "type")}
                for column in found["columns"]
            },
            "digests": [file["sha256"] for file in found["files"]],
        }

    async def convert(
        self,
        kind: str,
        files: Sequence[Mapping[str, Any]],
        options: Mapping[str, Any],
        target: str,
        *,
        told: ReportProgress,
        brief: bool = False,
    ) -> Mapping[str, Any]:
        job = self._job("convert", kind, files, options, {"target": target}, brief=brief)
        found: Mapping[str, Any] = await self._pool.ask(job, on_progress=told)
        return found

    async def first_rows(
        self, kind: str, files: Sequence[Mapping[str, Any]], options: Mapping[str, Any], *, rows: int
    ) -> FirstRows:
        described = "SELECT column_name, column_type FROM (DESCRIBE SELECT * FROM t)"
        job = self._job("report", kind, files, options, {}, brief=True)
        columns = (await self._pool.ask(replace(job, sql=described)))["rows"]
        cells = ", ".join(
            f"left(CAST({quote_identifier(name)} AS VARCHAR), {CELL_MAX})" for name, _ in columns[:COLUMNS_SHOWN]
        )
        first = f"SELECT {cells} FROM t LIMIT {rows:d}"  # noqa: S608  quoted
        found = await self._pool.ask(replace(job, sql=first))
        return FirstRows(tuple((name, kind) for name, kind in columns), tuple(map(tuple, found["rows"])))

    def _job(
        self,
        task: str,
        kind: str,
        files: Sequence[Mapping[str, Any]],
        options: Mapping[str, Any],
        arguments: Mapping[str, Any],
        *,
        brief: bool = False,
    ) -> Job:
        relation = Relation(kind=kind, files=tuple(files), options=options)
        limits = replace(self._limits, seconds=_BRIEF_SECONDS, total_seconds=_BRIEF_SECONDS) if brief else self._limits
        return Job(kind=task, relations={"t": relation}, limits=limits, arguments=arguments, consumer="owner")


class _DataPlane:
    """The data plane for the protocol's transfers; implements `dsp.transfer.DataPlane`."""

    def __init__(
        self, addresses: Addresses, reads: Reads, receiving: PushReceiver, net: HttpClient, *, owner: str
    ) -> None:
        self._addresses, self._reads, self._net, self._owner = addresses, reads, net, owner
        self._receiving = receiving

    def address(self, tx: Transaction, transfer: Transfer) -> DataAddress:
        self._reads.grants.load_in(tx, transfer.agreement_id, consumer=transfer.counterparty)
        found = address_of(self._addresses.address(transfer))
        assert found is not None  # ours are well formed
        return found

    def receives(self, transfer_id: str) -> DataAddress:
        found = address_of(self._receiving.address(transfer_id))
        assert found is not None  # ours are well formed
        return found

    async def stop(self, transfer_id: str, how: EndReason) -> None:
        self._reads.grants.stop_under(transfer_id, how)

    async def push(self, transfer: Transfer, data_address: DataAddress) -> None:
        await push(
            transfer,
            to=Target.of(data_address.endpoint, dict(data_address.properties)),
            addresses=self._addresses,
            reads=self._reads,
            net=self._net,
            owner=self._owner,
        )


def build(settings: Settings) -> Services:
    """Build and connect all services; nothing runs and no port is bound. The database must be migrated."""
    plugins.load_plugins()
    participant = settings.participant_id or did.did_of(settings.root_url)
    store = Store(settings.database, bus=Bus())
    fresh, keyed, newest = store.read_now(
        lambda tx: (tx.audit.is_empty(), tx.datasets.has_keyed(), tx.audit.read_checkpoint())
    )
    key_dir = settings.data_dir / "keys"
    key = keys.load_participant_key(key_dir, new=fresh)
    mask_secret = keys.load_secret(key_dir, "mask", new=fresh)
    version_secret = keys.load_secret(key_dir, "version", new=not keyed)  # versions were not keyed at first
    instance = keys.load_secret(key_dir, "instance").hex()[:32]  # a process's name: another one is another process
    metrics = Metrics()
    store.bus.subscribe(lambda event: metrics.events.labels(event.kind).inc(), own=True)
    guard = AddressGuard(allow=settings.allow_private, insecure_http=settings.insecure_http)
    net = HttpClient(guard, timeout=settings.call_timeout, max_bytes=settings.call_max_bytes)
    resolver = did.DidResolver(net)
    wallet = _wallet(settings, net, did=participant, key=key)
    shared = None if store.is_sqlite else SharedCallers(store)  # SQLite has one process
    verifier = _verifier(settings, net, resolver, did=participant, signer=wallet, shared=shared)
    identity = Identity(
        did=participant,
        key=key,
        resolver=resolver,
        wallet=wallet,
        verifier=verifier,
        shared_replays=shared,
        scopes=settings.credential_scopes,
        static=settings.static_tokens,
        anonymous=settings.anonymous_participant,
    )
    trust = MemberRegister(
        net,
        resolver,
        anchor=settings.trust_anchor,
        register_url=settings.trust_register,
        max_age=settings.register_max_age,
    )

    outside = Outside(settings.connections, settings.data_dir / "outside", cache_bytes=settings.object_cache_mb * 2**20)
    known = FactCollector(
        store,
        trust,
        more=fact_sources.load() if verifier is None else (CredentialFacts(verifier), *fact_sources.load()),
        uses_register=lambda party: verifier is None or verifier.rules.required_of(party) != "required",
    )
    converted = _converted(settings, version_secret)
    pool = Pool(
        settings.data_dir / "work",
        size=settings.workers_max,
        warm=settings.workers_warm,
        readable=(*settings.registrable, make_arrival_folder(settings.data_dir / "received")),
        writable=(converted, settings.data_dir / "queries", outside.drafts),
        library=outside,
    )
    grants = Grants(store, facts_of=known.of)
    addresses = Addresses(
        store,
        grants,
        key=key,
        participant=participant,
        root_url=settings.root_url,
        ticket_seconds=settings.ticket_seconds,
        flight=_location(settings),
    )
    prepared = PreparedStreams(
        settings.data_dir / "streams", quota=settings.prepared_mb * 2**20, sensitive=settings.prepared_sensitive
    )
    store.bus.subscribe(prepared.on_event)
    reads = Reads(
        store,
        grants,
        pool,
        name=settings.name,
        mask_secret=mask_secret,
        memory_mb=settings.worker_memory_mb,
        temp_mb=settings.worker_temp_mb,
        seconds=settings.query_seconds,
        streams_max=settings.streams_max,
        queue_seconds=settings.queue_seconds,
        metrics=metrics,
        instance=instance,
        prepared=prepared,
    )
    receiving = PushReceiver(
        store,
        pool,
        settings.data_dir / "received",
        secret=hmac.digest(mask_secret, b"pushes to us", "sha256"),  # every process here has that one
        root_url=settings.root_url,
        room=ReceiveLimits(each=settings.received_each_mb * 2**20, total=settings.received_mb * 2**20),
        memory_mb=settings.worker_memory_mb,
    )
    sender = Sender(
        store=store,
        send_delay=settings.dsp_send_delay,
        retry_first=settings.dsp_retry_first,
        retry_cap=settings.dsp_retry_cap,
        retry_deadline=settings.dsp_retry_deadline,
        metrics=metrics,
        instance=instance,
        is_member=resolver.is_expected,
        is_partner=process_limits.is_partner,
        makes_partner=process_limits.makes_partner,
    )
    peer = ProtocolClient(wire=net, mint=identity.mint)
    pace = settings.dsp_new_per_minute
    begun = process_limits.ProcessLimits(
        settings.dsp_negotiations_open,
        pace,
        all_open=settings.dsp_negotiations_open_all,
        members_offer=bool(settings.trust_anchor),
        idle=settings.dsp_negotiation_idle,
        idle_stranger=settings.dsp_negotiation_idle_stranger,
        strangers_per_minute=settings.dsp_new_per_minute_strangers,
    )
    parts = process.ProcessContext(
        store=store,
        sender=sender,
        peer=peer,
        participant=participant,
        base=settings.dsp_base,
        facts_of=known.of,
    )
    negotiating = NegotiationService(parts, limits=begun)
    data_plane = _DataPlane(addresses, reads, receiving, net, owner=settings.name)
    formats = FORMATS if settings.flight_port is None else {**FORMATS, FLIGHT_FORMAT: PULL}
    transferring = TransferService(
        parts,
        negotiations=negotiating,
        data_plane=data_plane,
        formats=formats,
        limits=process_limits.ProcessLimits(settings.dsp_transfers_open, pace),
    )
    registry = Registry(
        store,
        Profiles(pool, settings),
        name=settings.name,
        roots=settings.registrable,
        private=(*settings.own_places, *_records(settings), converted),
        converted=converted,
        secret=version_secret,
        outside=outside,
    )
    uploads = Uploads(
        store,
        settings.upload_folder,
        limits=UploadLimits(each=settings.upload_each_mb * 2**20, total=settings.upload_mb * 2**20),
        check=registry.check_readable,
    )
    owners_view = OwnersView(
        store,
        pool,
        known,
        name=settings.name,
        mask_secret=mask_secret,
        memory_mb=settings.worker_memory_mb,
    )
    registry.effects = VersionChecks(store, owners_view).effects
    agreed = AgreementService(
        store=store, sender=sender, negotiations=negotiating, transfers=transferring, stop=grants.stop
    )
    log_name = read_name(newest.note) if newest else origin_of(settings.root_url, settings.name)
    signer = Signer(log_name, keys.load_log_key(key_dir, new=fresh))
    former = tuple(Signer(signer.name, one) for one in keys.load_former_log_keys(key_dir))
    log_mark = HeadFile(settings.data_dir / "log.head", signer=signer, former=former)
    sequencer = Sequencer(
        store, signer=signer, former=former, head_file=log_mark, round_seconds=_round_seconds(settings, store)
    )
    log = AuditLog(store, sequencer, vkey=signer.vkey)
    known_logs = KnownLogs(net, _active_members(trust), own=participant, more=load_policy(settings.witness_policy))
    witness = Witness(
        store,
        Cosigner(_witness_name(participant), *keys.load_witness_keys(key_dir)),
        known_logs,
        count=lambda outcome: metrics.witnessed.labels(outcome).inc(),
        record=_record_refusal(participant),
    )
    cosigning = Cosigning(
        store,
        sequencer,
        known_logs,
        net,
        key=read_key(signer.vkey, ED25519),
        mint=identity.mint,
        participant=participant,
        most=settings.witnesses,
        count=lambda outcome: metrics.cosigned.labels(outcome).inc(),
    )
    log.settle_cosignatures = cosigning.settle

    async def published_keys() -> str:
        own = witness.cosigner.keys if settings.witness else ()
        return publish_keys(
            settings.name, log=read_key(signer.vkey, ED25519), witness=own, url=settings.root_url + PREFIX
        )

    sign_on_file = read_sign_on_file(settings.sign_on)
    pages_url = (settings.management_url or settings.console_url).rstrip("/")
    workloads = WorkloadTokens(
        store,
        net,
        sign_on_file.workloads,
        services=ServiceClients(net, sign_on_file.services, token_url=f"{pages_url}/api/v1/oauth/token"),
        secret=hmac.digest(mask_secret, b"workload tokens", "sha256"),
        seconds=settings.workload_token_seconds,
    )
    holdings = Holdings(store, net, identity, names=trust.names)
    return Services(
        settings=settings,
        participant=participant,
        instance=instance,
        store=store,
        relay=EventRelay(store, number=sequencer.wake),
        metrics=metrics,
        net=net,
        resolver=resolver,
        wallet=wallet,
        identity=identity,
        trust=trust,
        known=known,
        tokens=Tokens(store, workloads.read),
        personal=PersonalTokens(store),
        workloads=workloads,
        sign_on=SignOn(
            store,
            LoginClient(
                net,
                sign_on_file.providers,
                base=pages_url,
                secret=hmac.digest(mask_secret, b"login attempts", "sha256"),
            ),
        ),
        pool=pool,
        outside=outside,
        registry=registry,
        uploads=uploads,
        offers=Offers(store, absent={} if settings.trust_anchor else _NO_REGISTER),
        grants=grants,
        reads=reads,
        owners_view=owners_view,
        addresses=addresses,
        receiving=receiving,
        flight=_flight(settings, reads, addresses, key_dir),
        sender=sender,
        negotiations=negotiating,
        transfers=transferring,
        agreements=agreed,
        ledger=DutyLedger(store, net, identity.mint),
        upkeep=Upkeep(
            store,
            negotiations=negotiating,
            agreements=agreed,
            transfers=transferring,
            facts_of=known.of,
            seconds=settings.upkeep_seconds,
        ),
        partners=ParticipantDirectory(peer=peer, member=trust.find_member_by_name),
        webhooks=Webhooks(store=store, sender=sender, peer=peer, wire=net),
        announcer=Announcer(store, net, identity, catalogue_url=settings.catalogue_url, operator=settings.trust_anchor),
        feed=events.Feed(store.bus),
        catalog=Catalog(
            store=store, participant=participant, base=settings.dsp_base, facts_of=known.of, formats=formats
        ),
        signer=signer,
        former=former,
        log_mark=log_mark,
        sequencer=sequencer,
        log=log,
        known_logs=known_logs,
        witness=witness if settings.witness else None,
        cosigning=cosigning,
        published_keys=published_keys,
        holdings=holdings,
        coordinator=Coordinator(
            store,
            net,
            pool,
            work_dir=settings.data_dir / "queries",
            tables_for=holdings.tables,
            ticket=holdings.ticket,
            seconds=settings.query_seconds,
            queue_seconds=settings.queue_seconds,
            memory_mb=settings.worker_memory_mb,
            temp_mb=settings.worker_temp_mb,
            metrics=metrics,
        ),
    )


def _active_members(trust: MemberRegister) -> Callable[[bool], Awaitable[Sequence[SpaceMember]]]:
    """The register's active members, for witnesses."""

    async def members(newest: bool) -> Sequence[SpaceMember]:
        found = await trust.members(newest=newest)
        return [
            SpaceMember(id_, str(entry["url"]).rstrip("/"), entry.get("role") == "operator")
            for id_, entry in found.items()
            if entry.get("status") == "active" and entry.get("url")
        ]

    return members


def _witness_name(participant: str) -> str:
    """The name in our cosignatures: a URL without its scheme, from our DID."""
    return f"{unquote(participant.removeprefix('did:web:').replace(':', '/'))}/witness"


def _record_refusal(participant: str) -> Callable[[Transaction, KnownLog, Checkpoint, Answer], None]:
    """Publishes that we refused another log's head."""

    def record(tx: Transaction, log: KnownLog, head: Checkpoint, answer: Answer) -> None:
        about = {"origin": head.origin, "member": log.member, "size": head.size, "root": head.root.hex()}
        detail = {**about, "known_size": answer.size_known}
        tx.publish(
            CheckpointRefused(
                actor=participant, outcome="refused", code=answer.outcome, reason=answer.why, detail=detail
            )
        )

    return record


def _wallet(settings: Settings, net: HttpClient, *, did: str, key: ECKey) -> Wallet:
    """What signs our tokens: our own key, or a secure token service elsewhere."""
    if not settings.sts_url or settings.sts_secret_file is None:
        return OwnWallet(did=did, key=key)
    client = settings.sts_client_id or did
    return RemoteWallet(net, url=settings.sts_url, client=client, secret_file=settings.sts_secret_file)


def _verifier(
    settings: Settings,
    net: HttpClient,
    resolver: did.DidResolver,
    *,
    did: str,
    signer: Wallet,
    shared: SharedCallers | None,
) -> Verifier | None:
    """The verifier of callers' credentials; None without rules. Raises: Invalid for an invalid file."""
    if settings.credential_rules is None:
        return None
    rules = load_rules(settings.credential_rules)
    return Verifier(rules, net=net, resolver=resolver, did=did, signer=signer, shared=shared)


def _round_seconds(settings: Settings, store: Store) -> float:
    """The length of an audit round. It costs as much as a small read, so on SQLite a read's start and end share one."""
    return (settings.audit_round_ms or (1000 if store.is_sqlite else 200)) / 1000


def _location(settings: Settings) -> str:
    """The location of Flight for other participants; empty if it is off."""
    if settings.flight_port is None:
        return ""
    scheme = "grpc+tls" if settings.tls_certificate else "grpc+tcp"
    return settings.flight_url or f"{scheme}://{settings.flight_host}:{settings.flight_port}"


def _records(settings: Settings) -> Iterator[Path]:
    """The files of a SQLite database."""
    if (database := sqlite_file(settings.database)) is not None:
        yield from (database.absolute().with_name(f"{database.name}{more}") for more in ("", "-wal", "-shm"))


def _converted(settings: Settings, secret: bytes) -> Path:
    """The folder for converted files. In a shared folder it is a subfolder, named by a secret of this connector's
    processes, as unused files in it are removed."""
    if settings.converted_dir is None:
        return settings.data_dir / "prepared"
    return settings.converted_dir / f"converted-{hmac.digest(secret, b'converted', 'sha256').hex()[:16]}"


def _flight(settings: Settings, reads: Reads, addresses: Addresses, key_dir: Path) -> FlightServer | None:
    if settings.flight_port is None:
        return None
    listen = ListenOptions(
        host=settings.flight_host,
        port=settings.flight_port,
        certificate=str(settings.tls_certificate or ""),
        key=str(settings.tls_key or ""),
    )
    secret = keys.load_secret(key_dir, "flight")  # of cursors that are given out anew: Flight may be set at any time
    return FlightServer(FlightQueries(reads, addresses, owner=settings.name, key=secret), listen)
