"""Status lists: whether a credential is revoked or suspended (StatusList2021, Bitstring Status List 1.0).

A list is a credential of the issuer whose credentials it is about. The entry's type decides the mechanism. Lists are
cached for minutes, within a limit in bytes. A list that cannot be fetched or checked makes a credential not valid.
"""

from __future__ import annotations

import binascii
import re
import zlib
from base64 import urlsafe_b64decode
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from connector.errors import Unproven
from connector.identity.credentials import fetched
from connector.identity.credentials.credential import CredentialBody, read_body
from connector.identity.did import DidResolver
from connector.identity.signed_jwt import read_jwt, verify_jwt
from connector.infra.net.http_client import HttpClient
from policies.odrl.strictjson import list_of

_LIST_MAX = 2 * 2**20  # bytes of a list's credential
_BITS_MAX = 4 * 2**20  # bytes of a list, inflated: 33 million entries
_KEPT_BYTES = 32 * 2**20  # of all cached lists
_SECONDS = 300.0
_WHAT = "a status list"
_KINDS = {  # type of the entry -> type of the list's subject
    "BitstringStatusListEntry": "BitstringStatusList",
    "StatusList2021Entry": "StatusList2021",
}
_INDEX = re.compile(r"\d{1,12}", re.ASCII)


@dataclass(frozen=True, slots=True)
class _List:
    issuer: str
    kind: str
    purposes: tuple[str, ...]
    bits: bytes
    until: float  # UTC seconds

    def is_set(self, index: int) -> bool:
        """Whether a bit is set; bits are counted from the most significant one of each byte."""
        if index >= 8 * len(self.bits):
            raise Unproven(f"expected an index below {8 * len(self.bits)} in a status list, got {index}")
        return bool(self.bits[index // 8] & (0x80 >> index % 8))


class StatusLists:
    """Checks entries against cached status lists."""

    def __init__(self, net: HttpClient, resolver: DidResolver) -> None:
        self._net, self._resolver = net, resolver
        self._kept: OrderedDict[tuple[str, str], _List] = OrderedDict()
        self._size = 0

    async def check(self, entry: Mapping[str, Any], *, issuer: str, now: float) -> float:
        """Check that an entry's bit is not set. Returns until when that counts (UTC seconds).

        Raises: Unproven if it is set or the entry or list is invalid; Unavailable if the list cannot be had now.
        """
        is_set, until = await self.read(entry, issuer=issuer, now=now)
        if is_set:
            purpose = str(entry.get("statusPurpose"))
            raise Unproven(f"a credential of {issuer} is withdrawn ({purpose[:50]!a}); its issuer knows why")
        return until

    async def read(self, entry: Mapping[str, Any], *, issuer: str, now: float) -> tuple[bool, float]:
        """Whether an entry's bit is set, and until when that counts (UTC seconds).

        Raises: Unproven if the entry or list is invalid; Unavailable if the list cannot be had now.
        """
        kind = _KINDS.get(str(entry.get("type")))
        url, index, purpose = (entry.get(name) for name in ("statusListCredential", "statusListIndex", "statusPurpose"))
        if kind is None or not isinstance(url, str) or not isinstance(purpose, str):
            raise Unproven(f"expected an entry of {' or '.join(_KINDS)}, got type {str(entry.get('type'))[:50]!a}")
        if isinstance(index, bool) or not _INDEX.fullmatch(str(index)) or entry.get("statusSize", 1) != 1:
            raise Unproven(f"expected an index in a status list of single bits, got {str(index)[:50]!a}")
        found = await self._list(url.partition("#")[0], issuer, now)
        if found.kind != kind or purpose not in found.purposes:
            raise Unproven(f"expected a {kind} for {purpose[:50]!a}, got one of another type or purpose")
        return found.is_set(int(str(index))), found.until

    async def _list(self, url: str, issuer: str, now: float) -> _List:
        kept = self._kept.get((url, issuer))
        if kept is None or now >= kept.until:
            kept = await self._fetch(url, issuer, now)
            self._keep((url, issuer), kept)
        return kept

    def _keep(self, key: tuple[str, str], found: _List) -> None:
        if (before := self._kept.pop(key, None)) is not None:
            self._size -= len(before.bits)
        self._kept[key] = found
        self._size += len(found.bits)
        while self._size > _KEPT_BYTES:
            self._size -= len(self._kept.popitem(last=False)[1].bits)

    async def _fetch(self, url: str, issuer: str, now: float) -> _List:
        body = await fetched.call(self._net, "GET", url, what=_WHAT, max_bytes=_LIST_MAX)
        jwt = read_jwt(body.decode("ascii", "replace").strip(), what=_WHAT, longest=_LIST_MAX)
        read = read_body(jwt, now=now)
        if read.issuer != issuer:
            raise Unproven(f"expected a status list of {issuer}, got one of {read.issuer[:200]!a}")
        await verify_jwt(jwt, issuer, purpose="assertionMethod", what=_WHAT, resolver=self._resolver)
        return _read_list(read, now)


def _read_list(read: CredentialBody, now: float) -> _List:
    subjects = [one for one in list_of(read.fields.get("credentialSubject")) if isinstance(one, dict)]
    kind = str(subjects[0].get("type")) if len(subjects) == 1 else ""
    if kind not in _KINDS.values() or f"{kind}Credential" not in read.types:
        raise Unproven("expected a credential with one status list, got another credential")
    purposes = tuple(purpose for purpose in list_of(subjects[0].get("statusPurpose")) if isinstance(purpose, str))
    until = now + _SECONDS if read.expires is None else min(now + _SECONDS, read.expires)
    return _List(read.issuer, kind, purposes, inflate(subjects[0].get("encodedList")), until)


def inflate(encoded: object) -> bytes:
    """The bits of an `encodedList`: base64 or base64url of gzip, with or without a leading `u`.

    Raises: Unproven for another text, or one that is longer than the limit when inflated.
    """
    if not isinstance(encoded, str):
        raise Unproven("expected an encodedList as text")
    # The first letter of gzip's base64 is always H, so that a leading u is the mark of base64url.
    text = encoded.removeprefix("u").rstrip("=").translate(str.maketrans("+/", "-_"))
    try:
        packed = urlsafe_b64decode(text + "=" * (-len(text) % 4))
        reader = zlib.decompressobj(wbits=31)
        bits = reader.decompress(packed, _BITS_MAX + 1)
    except (binascii.Error, ValueError, zlib.error) as error:
        raise Unproven("expected an encodedList as base64url of gzip, got something else") from error
    if len(bits) > _BITS_MAX:
        raise Unproven(f"expected a status list of at most {_BITS_MAX} bytes, got more; stopped inflating")
    if not bits or not reader.eof:
        raise Unproven("expected a whole status list, got an empty or cut one")
    return bits
