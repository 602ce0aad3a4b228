"""Our own signing keys: made at first start, kept in the data directory, readable by us only."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from joserfc.jwk import ECKey


def participant_key(directory: Path) -> ECKey:
    """The P-256 key that signs our tokens (ES256: understood by every peer)."""
    text = _kept(directory / "participant.pem", lambda: ECKey.generate_key("P-256").as_pem(private=True))
    return ECKey.import_key(text)


def public_jwk(key: ECKey) -> dict[str, Any]:
    """The public half, with its RFC 7638 thumbprint as `kid`."""
    return {**key.as_dict(private=False), "kid": key.thumbprint()}


def log_key(directory: Path) -> ed25519.Ed25519PrivateKey:
    """The Ed25519 key that signs the audit log's checkpoints (C2SP signed-note)."""
    made = ed25519.Ed25519PrivateKey.generate
    raw = _kept(directory / "log.key", lambda: made().private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption()))
    return ed25519.Ed25519PrivateKey.from_private_bytes(raw)


def secret(directory: Path, name: str) -> bytes:
    """32 random bytes, the same at every start: for keyed hashes and cursors."""
    return _kept(directory / f"{name}.secret", lambda: os.urandom(32))


def _kept(path: Path, make: Any) -> bytes:
    """The bytes in `path`; made and stored for our eyes only where there are none. Whole or not there at all."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        data: bytes = make()
        draft = path.with_suffix(f".{os.getpid()}.new")
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)  # fails where another process was first: then its key is the key
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    return path.read_bytes()
