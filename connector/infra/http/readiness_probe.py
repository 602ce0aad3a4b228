"""Whether our own listener answers that it is ready, asked as the settings say that it listens. For a supervisor."""

from __future__ import annotations

import http.client
import ssl

_SECONDS = 2.0
_ANY = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # bound to all, it is asked here


def why_not(host: str, port: int, *, tls: bool) -> str:
    """Why the listener bound to `host` and `port` is not ready, as a sentence; empty where it is."""
    asked = f"{_ANY.get(host, host)} port {port}"
    try:
        status, said = _ask(_ANY.get(host, host), port, tls=tls)
    except (OSError, http.client.HTTPException) as error:
        return f"expected an answer of {asked} within {_SECONDS:.0f} s, came none ({error or type(error).__name__})"
    return "" if status == 200 else f"{asked} is not ready: status {status}, {said}"


def _ask(host: str, port: int, *, tls: bool) -> tuple[int, str]:
    line = (
        http.client.HTTPSConnection(host, port, timeout=_SECONDS, context=_unverified())
        if tls
        else http.client.HTTPConnection(host, port, timeout=_SECONDS)
    )
    try:
        line.request("GET", "/health/ready")
        answer = line.getresponse()
        return answer.status, answer.read(500).decode(errors="replace")
    finally:
        line.close()


def _unverified() -> ssl.SSLContext:
    """Our own certificate is made out to the name that others use, and may sign itself; nothing secret is sent."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
