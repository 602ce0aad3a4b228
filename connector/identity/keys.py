"""Our own signing keys and secrets: created at the first start in the data directory, with mode 0600.

A missing or damaged key stops the start. An empty secret would protect nothing, and a new key next to records of the
old one would change masks, the identity and the log.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ed25519, mldsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from joserfc.errors import JoseError
from joserfc.jwk import ECKey

from connector.errors import Invalid, WrongState
from connector.infra import atomic_files

_SECRET_MAX = 4 * 2**10  # characters
_BYTES = 32  # of a secret, and of an Ed25519 key
_RESTORE = (
    "restore it from its backup, or copy it from another process on the same database (if it is lost for good, see "
    "docs/operations.md)"
)


def load_participant_key(directory: Path, *, new: bool = True) -> ECKey:
    """The P-256 key that signs our tokens with ES256, which every peer supports.

    `new`, here and below: create a missing file. Raises: WrongState if the file is missing and `new` is false; Invalid
    if it holds something else.
    """
    path = directory / "participant.pem"
    text = _read_or_create(path, lambda: ECKey.generate_key("P-256").as_pem(private=True), new=new)
    with suppress(ValueError, TypeError, JoseError):  # TypeError: the key needs a passphrase
        key = ECKey.import_key(text)
        if key.is_private and key.curve_name == "P-256":
            return key
    raise Invalid(
        f"expected a private key of the curve P-256 in PEM, not encrypted, in {path}, got something else; {_help(new)}"
    )


def load_former_participant_keys(directory: Path) -> list[ECKey]:
    """The participant's former public keys (`participant-*.pem`), which our DID document still lists.

    Raises: Invalid for a file that holds something else.
    """
    found = []
    for path in sorted(directory.glob("participant-*.pem")):
        try:
            found.append(ECKey.import_key(path.read_bytes()))
        except (ValueError, TypeError, JoseError, OSError):
            raise Invalid(f"expected a public key in PEM in {path}, got something else; restore or remove it") from None
    return found


def change_participant_key(directory: Path) -> ECKey:
    """Make a new participant key. The old one's public part stays as `participant-<thumbprint>.pem`.

    The old public key is written first: if this stops half-way, the old key still signs. Raises: WrongState, Invalid.
    """
    before = load_participant_key(directory, new=False)
    former = directory / f"participant-{before.thumbprint()[:16]}.pem"
    _read_or_create(former, lambda: before.as_pem(private=False), new=True)
    after, draft = ECKey.generate_key("P-256"), directory / "participant.next"
    draft.unlink(missing_ok=True)
    _read_or_create(draft, lambda: after.as_pem(private=True), new=True)
    draft.replace(directory / "participant.pem")
    atomic_files.sync(directory)
    return after


def public_jwk(key: ECKey) -> dict[str, Any]:
    """The public JWK of a key, with its RFC 7638 thumbprint as `kid`."""
    return {**key.as_dict(private=False), "kid": key.thumbprint()}


def load_log_key(directory: Path, *, new: bool = True) -> ed25519.Ed25519PrivateKey:
    """The Ed25519 key that signs the audit log's checkpoints (C2SP signed-note). Raises: WrongState, Invalid."""
    return ed25519.Ed25519PrivateKey.from_private_bytes(_read_key_bytes(directory / "log.key", _new_log_key, new=new))


def load_former_log_keys(directory: Path) -> list[ed25519.Ed25519PrivateKey]:
    """The log's former keys, by which a log that ends under an old key is recognised."""
    return [
        ed25519.Ed25519PrivateKey.from_private_bytes(_read_key_bytes(path, _new_log_key, new=False))
        for path in sorted(directory.glob("log-*.key"))
    ]


def load_witness_keys(directory: Path) -> tuple[ed25519.Ed25519PrivateKey, mldsa.MLDSA44PrivateKey | None]:
    """The keys that cosign other logs (C2SP tlog-cosignature); None where the library has no ML-DSA.

    Raises: WrongState, Invalid.
    """
    plain = _read_key_bytes(directory / "witness.key", _new_log_key, new=True)
    try:
        seed = _read_key_bytes(directory / "witness.mldsa44", lambda: os.urandom(_BYTES), new=True)
        quantum_safe = mldsa.MLDSA44PrivateKey.from_seed_bytes(seed)
    except UnsupportedAlgorithm:
        quantum_safe = None
    return ed25519.Ed25519PrivateKey.from_private_bytes(plain), quantum_safe


def load_next_log_key(directory: Path) -> ed25519.Ed25519PrivateKey:
    """The next key of the log: the same at each call, until `change_log_key`."""
    return ed25519.Ed25519PrivateKey.from_private_bytes(_read_key_bytes(directory / "log.next", _new_log_key, new=True))


def change_log_key(directory: Path, *, before: str) -> None:
    """Make the next key the log's key. The old one stays as `log-<before>.key` and signs nothing more.

    The old key's bytes are copied, as its file may be a link into a mounted secret.
    """
    now, after = directory / "log.key", directory / "log.next"
    _read_or_create(directory / f"log-{before}.key", now.read_bytes, new=True)
    after.chmod(now.stat().st_mode & 0o777)
    after.replace(now)
    atomic_files.sync(directory)


def load_secret(directory: Path, name: str, *, new: bool = True) -> bytes:
    """At least 32 random bytes, the same at every start, for keyed hashes and cursors. Raises: WrongState, Invalid."""
    path = directory / f"{name}.secret"
    data = _read_or_create(path, lambda: os.urandom(_BYTES), new=new)
    if len(data) < _BYTES:
        raise Invalid(f"expected {_BYTES} bytes or more in {path}, got {len(data)}; {_help(new)}")
    return data


def read_secret(path: Path) -> str:
    """The text in an operator's file with a shared secret; empty if it is missing, unreadable or too long."""
    try:
        with path.open(encoding="ascii") as file:
            text = file.read(_SECRET_MAX + 1).strip()
    except (OSError, ValueError):
        return ""
    return text if len(text) <= _SECRET_MAX else ""


def _help(new: bool) -> str:
    return "restore it from its backup, or remove it to have a new one created" if new else _RESTORE


def _new_log_key() -> bytes:
    return ed25519.Ed25519PrivateKey.generate().private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())


def _read_key_bytes(path: Path, make: Callable[[], bytes], *, new: bool) -> bytes:
    data = _read_or_create(path, make, new=new)
    if len(data) != _BYTES:
        raise Invalid(f"expected {_BYTES} bytes in {path}, got {len(data)}; {_help(new)}")
    return data


def _make(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Not named by process id: in a container that is always the same, and a killed start leaves its draft.
    draft = path.with_suffix(f".{os.urandom(8).hex()}.new")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):  # another process was first: use its key
            os.link(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    atomic_files.sync(path.parent)  # or the file could be lost, but not the records made with it


def _read_or_create(path: Path, make: Callable[[], bytes], *, new: bool) -> bytes:
    """The bytes in `path`; if it is missing and `new`, create it with mode 0600. Never leaves a partial file."""
    try:
        there = path.exists()
    except OSError as error:
        raise Invalid(
            f"{path} cannot be accessed ({error.strerror}); let the connector's user search its folder"
        ) from None
    if not there:
        if not new:
            raise WrongState(f"expected {path}, as there are records that were made with it, got no file; {_help(new)}")
        try:
            _make(path, make())
        except OSError as error:
            raise Invalid(
                f"{path} cannot be written ({error.strerror}); make room on its disk, or let the connector's user "
                "write to its folder"
            ) from None
    try:
        return path.read_bytes()
    except OSError as error:
        raise Invalid(f"{path} cannot be read ({error.strerror}); {_help(new)}") from None
