"""The public listener with a certificate of its own speaks TLS, and nothing else."""

from __future__ import annotations

import http.client
import json
import ssl
from pathlib import Path

import pytest

from tests.support.certificates import self_signed
from tests.support.ports import free_range
from tests.support.processes import Process


def test_the_public_listener_speaks_tls_and_nothing_else(tmp_path: Path) -> None:
    certificate = self_signed(tmp_path / "certificate.pem")
    first = free_range(2)
    north = Process("north", tmp_path / "north", first, first + 1, certificate=certificate, forked=True)
    north.start()
    try:
        context = ssl.create_default_context(cafile=str(certificate))
        secure = http.client.HTTPSConnection("127.0.0.1", north.public_port, context=context, timeout=60)
        secure.request("GET", "/.well-known/did.json")
        assert f"https://127.0.0.1:{north.public_port}" in json.dumps(json.load(secure.getresponse()))
        plain = http.client.HTTPConnection("127.0.0.1", north.public_port, timeout=60)
        plain.request("GET", "/.well-known/did.json")
        with pytest.raises((http.client.HTTPException, OSError)):
            plain.getresponse()
    finally:
        north.kill()
