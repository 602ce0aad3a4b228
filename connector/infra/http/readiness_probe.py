"""Asks this machine's own listener whether it is ready, for a supervisor such as systemd or Docker."""

from __future__ import annotations

import http.client
import ssl

_SECONDS = 2.0
_ANY = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # bound to every address: ask on loopback


def explain_not_ready(host: str, port: int, *, tls: bool) -> str:
    """Why the listener bound to `host` and `port` is not ready, as a sentence; empty if it is ready."""
    address = f"{_ANY.get(host, host)} port {port}"
    try:
        status, body = _request(_ANY.get(host, host), port, tls=tls)
    except (OSError, http.client.HTTPException) as error:
        return f"expected an answer from {address} within {_SECONDS:.0f} s, got none ({error or type(error).__name__})"
    return "" if status == 200 else f"{address} is not ready: status {status}, {body}"


def _request(host: str, port: int, *, tls: bool) -> tuple[int, str]:
    connection = (
        http.client.HTTPSConnection(host, port, timeout=_SECONDS, context=_unverified())
        if tls
        else http.client.HTTPConnection(host, port, timeout=_SECONDS)
    )
    try:
        connection.request("GET", "/health/ready")
        answer = connection.getresponse()
        return answer.status, answer.read(500).decode(errors="replace")
    finally:
        connection.close()


def _unverified() -> ssl.SSLContext:
    """No verification: the certificate names our public host and may be self-signed, and nothing secret is sent."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
