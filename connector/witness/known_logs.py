"""Which logs we are a witness for, and which witnesses our log has: the active members, and the operator's file.

Members publish their keys at `/witness/v1/keys`, as lines of a C2SP tlog-policy. They are read in the background, so
that no request from a stranger causes a call.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from connector.errors import ConnectorError, Invalid, PeerNonsense
from connector.infra.net.http_client import HttpClient
from connector.telemetry import logger
from connector.witness.notes import COSIGNATURE, COSIGNATURE_MLDSA44, ED25519, NoteInvalid, VerifierKey, read_key

PREFIX = "/witness/v1"
_DOCUMENT_MAX = 32 * 2**10
_LINES_MAX = 64
_LOOK_SECONDS = 30.0  # between two looks at the register
_WISH_SECONDS = 2.0  # the shortest pause, after a request for an unknown log
_KEYS_SECONDS = 600.0  # that a member's keys are used before they are read again
_AT_ONCE = 4
_log = logger("witness")


@dataclass(frozen=True, slots=True)
class KnownLog:
    """A log with its key, and the member that it is of; empty for a log of the operator's file."""

    key: VerifierKey
    member: str = ""


@dataclass(frozen=True, slots=True)
class KnownWitness:
    """A witness: its DID, or its name in the operator's file; the prefix of its address; its keys."""

    id: str
    url: str
    keys: tuple[VerifierKey, ...]
    always: bool = False  # of the operator's file, or the data space's operator


@dataclass(frozen=True, slots=True)
class SpaceMember:
    """An active member of the register."""

    id: str
    url: str
    is_operator: bool = False


@dataclass(frozen=True, slots=True)
class PolicyLines:
    """The log and witness lines of a tlog-policy. Witnesses: name, key, address."""

    logs: tuple[VerifierKey, ...] = ()
    witnesses: tuple[tuple[str, VerifierKey, str], ...] = ()


def read_policy_lines(text: str) -> PolicyLines:
    """The log and witness lines of a tlog-policy; groups and quorum are the auditor's. Raises: NoteInvalid."""
    logs: list[VerifierKey] = []
    witnesses: list[tuple[str, VerifierKey, str]] = []
    for number, line in enumerate(text.split("\n"), 1):
        words = line.split()
        if not words or words[0].startswith("#") or words[0] in ("group", "quorum"):
            continue
        if number > _LINES_MAX:
            raise NoteInvalid(f"expected at most {_LINES_MAX} lines")
        if words[0] == "log" and len(words) in (2, 3):
            logs.append(read_key(words[1], ED25519))
        elif words[0] == "witness" and len(words) in (3, 4):
            key = read_key(words[2], COSIGNATURE, COSIGNATURE_MLDSA44)
            witnesses.append((words[1], key, words[3] if len(words) == 4 else ""))
        else:
            raise NoteInvalid(f"line {number}: expected `log VKEY [URL]` or `witness NAME VKEY [URL]`")
    return PolicyLines(tuple(logs), tuple(witnesses))


def load_policy(path: Path | None) -> PolicyLines:
    """The operator's file of further logs and witnesses. Raises: Invalid."""
    if path is None:
        return PolicyLines()
    try:
        lines = read_policy_lines(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, NoteInvalid) as error:
        raise Invalid(f"HANSE_WITNESS_POLICY: {path} is not a tlog-policy that can be read: {error}") from None
    if missing := [name for name, _, url in lines.witnesses if not url]:
        raise Invalid(f"HANSE_WITNESS_POLICY: expected an address at the witness {missing[0]}, which checkpoints go to")
    return lines


def publish_keys(name: str, *, log: VerifierKey | None, witness: Iterable[VerifierKey], url: str) -> str:
    """Our keys as policy lines, as members and auditors take them."""
    lines = [] if log is None else [f"log {log}\n"]
    suffixes = {COSIGNATURE: "", COSIGNATURE_MLDSA44: "-mldsa44"}
    lines += [f"witness {name}{suffixes[key.kind]} {key} {url}\n" for key in witness]
    return "".join(lines)


class KnownLogs:
    """The logs and witnesses that are known now. `members` gives the register's active members, `newest` fetches it."""

    def __init__(
        self,
        net: HttpClient,
        members: Callable[[bool], Awaitable[Sequence[SpaceMember]]],
        *,
        own: str,
        more: PolicyLines,
    ) -> None:
        self._net, self._members, self._own = net, members, own
        self._listed = {key.name: KnownLog(key) for key in more.logs}
        grouped: dict[str, list[VerifierKey]] = {}
        for _, key, url in more.witnesses:
            grouped.setdefault(url.rstrip("/"), []).append(key)
        self._listed_witnesses = [KnownWitness(keys[0].name, url, tuple(keys), True) for url, keys in grouped.items()]
        self._published: dict[str, tuple[float, SpaceMember, PolicyLines]] = {}
        self._logs: Mapping[str, KnownLog] = self._listed
        self._wish = asyncio.Event()
        self.changed: Callable[[], None] = lambda: None

    def find(self, origin: str) -> KnownLog | None:
        """The log with this origin. An unknown one lets the register be looked at soon, for a new member's log."""
        known = self._logs.get(origin)
        if known is None:
            self._wish.set()
        return known

    def witnesses(self, most: int) -> list[KnownWitness]:
        """Our log's witnesses: the operator's, and `most` members by rendezvous hash over the DIDs."""
        found = [
            KnownWitness(
                member.id, member.url + PREFIX, tuple(key for _, key, _ in lines.witnesses), member.is_operator
            )
            for _, member, lines in self._published.values()
            if lines.witnesses
        ]
        others = [one for one in found if not one.always]
        others.sort(key=lambda one: sha256(f"{self._own}\n{one.id}".encode()).digest())
        return [*self._listed_witnesses, *(one for one in found if one.always), *others[:most]]

    async def run(self) -> None:
        """Follow the register until cancelled."""
        while True:
            newest = self._wish.is_set()
            self._wish.clear()
            try:
                await self.refresh(newest=newest)
            except Exception as error:  # noqa: BLE001  # what is known stays, and is looked at again
                _log.warning("witnesses_not_read", reason=getattr(error, "message", repr(error)))
            await asyncio.sleep(_WISH_SECONDS)
            try:
                async with asyncio.timeout(_LOOK_SECONDS):
                    await self._wish.wait()
            except TimeoutError:
                pass

    async def refresh(self, *, newest: bool = False) -> None:
        """Look at the register, and read the keys of members whose keys are not known or old."""
        members = {one.id: one for one in await self._members(newest) if one.id != self._own}
        now = time.monotonic()
        kept = {id_: entry for id_, entry in self._published.items() if members.get(id_) == entry[1]}
        due = [one for one in members.values() if one.id not in kept or now - kept[one.id][0] > _KEYS_SECONDS]
        gate = asyncio.Semaphore(_AT_ONCE)

        async def read(member: SpaceMember) -> None:
            async with gate:
                try:
                    kept[member.id] = (now, member, await self._read_keys(member))
                except ConnectorError as error:
                    _log.info("witness_keys_not_read", member=member.id, reason=error.message)

        await asyncio.gather(*(read(member) for member in due))
        before = {id_: entry[1:] for id_, entry in self._published.items()}
        self._published = kept
        logs = dict(self._listed)
        for _, member, lines in sorted(kept.values(), key=lambda entry: entry[1].id):
            for key in lines.logs[:1]:
                logs.setdefault(key.name, KnownLog(key, member.id))
        self._logs = logs
        if before != {id_: entry[1:] for id_, entry in kept.items()}:
            self.changed()

    async def _read_keys(self, member: SpaceMember) -> PolicyLines:
        reply = await self._net.call("GET", f"{member.url}{PREFIX}/keys", max_bytes=_DOCUMENT_MAX)
        if reply.status != 200:
            if reply.status == 404:
                return PolicyLines()  # a member without a log and without witness
            raise PeerNonsense(f"expected the keys of {member.id}, got status {reply.status}")
        try:
            return read_policy_lines(reply.body.decode())
        except (UnicodeDecodeError, NoteInvalid) as error:
            raise PeerNonsense(f"expected lines with the keys of {member.id}, got others: {error}") from None
