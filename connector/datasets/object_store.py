"""Objects in S3-compatible stores: found, pinned by ETag and size, and read by range while they are unchanged.

Runs in the connector's own process, which has the network and the credentials, and never interprets the bytes. Each
error has its own text: a store's message may hold addresses and keys.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, NoReturn

from connector.datasets.connections import Connections, StoreConnection
from connector.datasets.sources.source_files import FILES_MAX, FileRef
from connector.errors import Absent, ConnectorError, Invalid, SourceUnreadable, VersionChanged

SCHEME = "s3://"
_HEADS_MAX = 32  # more objects than this are asked for by listing
_AT_ONCE = 8
_LISTED = 1000
_CONNECT, _READ = "5s", "30s"
_UNFIT = re.compile(r'Path "(.+)"(?: contained|: Encountered)', re.DOTALL)  # of the library, on a bad key

# Without an error class for a refusal, the library's message has the status before the store's message.
_STATUS = re.compile(r"Generic S3 error: Error performing [^\n]*? status code: (\d{3}) ")
_ELSEWHERE = re.compile(r"Generic S3 error: Error performing [^\n]*? Received redirect without LOCATION")


def split(path: str) -> tuple[str, str]:
    """Return bucket and key of `s3://bucket/key`.

    Raises: Invalid for any other form.
    """
    bucket, _, key = path.removeprefix(SCHEME).partition("/")
    if not path.startswith(SCHEME) or not bucket or len(path) > 2048 or any(ord(letter) < 32 for letter in path):
        raise Invalid(f"expected s3://bucket/key or s3://bucket/prefix/, came {path[:200]!r}")
    return bucket, key


class _KeyUnfit(Invalid):
    """A listing has a key that the library rejects as a path. It then returns no other key either."""


class Objects:
    """Objects by path, over the configured stores. A client is kept until its credentials change."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._clients: dict[tuple[str, str], tuple[StoreConnection, Any]] = {}

    async def find(self, path: str, *, store: str, suffixes: Sequence[str]) -> tuple[str, tuple[FileRef, ...]]:
        """Return the store's name, and the pinned object at `path`, or all objects with these endings below it.

        Hidden objects and names like `_SUCCESS` are left out. Raises: Absent without any object.
        """
        bucket, key = split(path)
        name, client = self._client(store, bucket)
        if key and not key.endswith("/"):
            try:
                return name, (_ref(bucket, await _head(client, key), PurePosixPath(key).name),)
            except Absent:
                if key.lower().endswith(tuple(suffixes)):
                    raise
        prefix = f"{key.rstrip('/')}/" if key.strip("/") else ""
        found = []
        async for meta in _list_objects(client, prefix):
            place = meta["path"].removeprefix(prefix)
            if _is_data(place, suffixes) and not await _is_folder(client, meta):
                found.append(_ref(bucket, meta, place))
            if len(found) > FILES_MAX:
                raise Invalid(f"expected at most {FILES_MAX} objects under {path!r}; merge small ones first")
        if not found:
            raise Absent(f"no {' or '.join(suffixes)} object at {path!r}; check bucket and prefix")
        return name, tuple(sorted(found, key=lambda ref: ref.name))

    async def check(self, refs: Sequence[FileRef], *, store: str) -> None:
        """Check pinned objects.

        Raises: VersionChanged unless each is still as pinned.
        """
        by_bucket: dict[str, dict[str, FileRef]] = {}
        for ref in refs:
            bucket, key = split(ref.path)
            by_bucket.setdefault(bucket, {})[key] = ref
        for bucket, wanted in by_bucket.items():
            _, client = self._client(store, bucket)
            await (_check_each(client, wanted) if len(wanted) <= _HEADS_MAX else _check_listed(client, wanted))

    async def read(self, ref: FileRef, *, store: str, start: int, stop: int) -> bytes | memoryview:
        """Return bytes `start` to `stop` of exactly the pinned object.

        Raises: VersionChanged where the object has changed.
        """
        bucket, key = split(ref.path)
        _, client = self._client(store, bucket)
        try:
            got = await _get(client, key, {"range": (start, stop), "if_match": ref.etag})
            if not _is_same(ref, got.meta):  # a store may ignore If-Match
                raise VersionChanged("an object of this version has changed since it was registered")
            body = memoryview(await got.bytes_async())
        except ConnectorError:
            raise
        except Exception as error:  # noqa: BLE001  every class of the library
            _raise_refusal(error, changed=True)
        if len(body) != stop - start:
            raise SourceUnreadable("the object store sent fewer bytes than it was asked for; try again")
        return body

    def _client(self, store: str, bucket: str) -> tuple[str, Any]:
        name, settings = self._connections.store(store, bucket=bucket)
        kept = self._clients.get((name, bucket))
        if kept is None or kept[0] != settings:
            self._clients[name, bucket] = kept = (settings, _open_client(settings, bucket))
        return name, kept[1]


def _open_client(store: StoreConnection, bucket: str) -> Any:
    from obstore.store import S3Store

    config: dict[str, Any] = {
        "endpoint": store.endpoint.rstrip("/"),
        "region": store.region,
        "virtual_hosted_style_request": store.bucket_in_host,
        "skip_signature": not store.access_key_id.get_secret_value(),
    }
    for field in ("access_key_id", "secret_access_key", "session_token"):
        if secret := getattr(store, field).get_secret_value():
            config[field] = secret
    client = {"allow_http": store.insecure_http, "connect_timeout": _CONNECT, "timeout": _READ}
    return S3Store(bucket, config=config, client_options=client, retry_config={"max_retries": 3})  # type: ignore[arg-type]  # plain dicts


async def _get(client: Any, key: str, options: dict[str, Any]) -> Any:
    import obstore

    return await obstore.get_async(client, key, options=options)  # type: ignore[arg-type]  # a plain dict


async def _head(client: Any, key: str) -> Mapping[str, Any]:
    import obstore

    try:
        found: Mapping[str, Any] = await obstore.head_async(client, key)
    except Exception as error:  # noqa: BLE001  every class of the library
        _raise_refusal(error)
    return found


async def _list_objects(client: Any, prefix: str) -> AsyncIterator[Mapping[str, Any]]:
    import obstore

    try:
        async for page in obstore.list(client, prefix or None, chunk_size=_LISTED):
            for meta in page:
                yield meta
    except ConnectorError:
        raise
    except Exception as error:  # noqa: BLE001  every class of the library
        _raise_refusal(error)


async def _check_each(client: Any, wanted: Mapping[str, FileRef]) -> None:
    gate = asyncio.Semaphore(_AT_ONCE)

    async def check(key: str, ref: FileRef) -> None:
        async with gate:
            try:
                same = _is_same(ref, await _head(client, key))
            except Absent:
                same = False
        if not same:
            raise _changed_error()

    await asyncio.gather(*(check(key, ref) for key, ref in wanted.items()))


async def _check_listed(client: Any, wanted: Mapping[str, FileRef]) -> None:
    left = dict(wanted)
    try:
        async for meta in _list_objects(client, _common_prefix(list(wanted))):
            ref = left.pop(meta["path"], None)
            if ref is not None and not _is_same(ref, meta):
                raise _changed_error()
    except _KeyUnfit:  # caused by another object below the prefix
        await _check_each(client, left)
        return
    if left:
        raise _changed_error()


def _common_prefix(keys: Sequence[str]) -> str:
    """Return the longest prefix of whole folder names that all keys share."""
    first, last = min(keys), max(keys)
    length = next((n for n, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first))
    return first[: first.rfind("/", 0, length) + 1]


def _ref(bucket: str, meta: Mapping[str, Any], name: str) -> FileRef:
    etag = meta["e_tag"] or ""
    if not etag or etag.startswith("W/"):
        raise SourceUnreadable("expected an object store that gives each object a strong ETag, came one without")
    when = int(meta["last_modified"].timestamp() * 1e9)
    path = f"{SCHEME}{bucket}/{meta['path']}"
    return FileRef(path, 0, 0, meta["size"], when, name, etag=etag, version=meta["version"] or "")


def _is_same(ref: FileRef, meta: Mapping[str, Any]) -> bool:
    version = meta["version"] or ""
    same_version = not version or not ref.version or version == ref.version  # a listing has no version
    return (meta["e_tag"], meta["size"]) == (ref.etag, ref.size) and same_version


def _is_data(place: str, suffixes: Sequence[str]) -> bool:
    parts = PurePosixPath(place).parts
    return place.lower().endswith(tuple(suffixes)) and not any(part.startswith((".", "_")) for part in parts)


async def _is_folder(client: Any, meta: Mapping[str, Any]) -> bool:
    """Return whether an object is a folder marker of Hadoop or a console. The library drops the `/` at the end of its
    key."""
    if meta["size"]:
        return False
    try:
        await _head(client, meta["path"])
    except Absent:
        return True
    return False


def _changed_error() -> VersionChanged:
    return VersionChanged.of("an object of this version is gone or has changed")


def _raise_refusal(error: Exception, *, changed: bool = False) -> NoReturn:
    """Raise the library's error as an error of this connector, without its text."""
    import obstore.exceptions as theirs

    if isinstance(error, theirs.PreconditionError) or (changed and isinstance(error, FileNotFoundError)):
        raise _changed_error() from None
    status = found[1] if (found := _STATUS.match(str(error))) else ""
    if isinstance(error, FileNotFoundError) or status == "404":
        raise Absent("there is no such object or bucket; check the path") from None
    if isinstance(error, theirs.InvalidPathError) and (key := _UNFIT.search(str(error))):
        raise _KeyUnfit(
            "expected keys whose parts are not empty, `.` or `..`, and without control characters, came "
            f"{key[1][:200]!r}; rename that object, or name a prefix that it is not below"
        ) from None
    if isinstance(error, (theirs.PermissionDeniedError, theirs.UnauthenticatedError)) or status in ("401", "403"):
        raise SourceUnreadable(
            "the object store does not let the connector read there; let the operator check its credentials",
            code="store_refused",
        ) from None
    if status == "400" or _ELSEWHERE.match(str(error)):  # the answer to a HEAD has no more details
        raise SourceUnreadable(
            "the object store does not take such a request; let the operator check that the connection's region is the "
            "one of this bucket, and its address",
            code="store_refused",
        ) from None
    raise SourceUnreadable(
        "the object store does not answer as expected; try again, or let the operator check its address",
        code="store_unreachable",
        private=type(error).__name__,
    ) from None
