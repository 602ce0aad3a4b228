"""The process that speaks Flight: `python -m connector.dataplane.flight.server <control fd> <listen as JSON>`.

It turns calls into questions to the connector (`calls`, `commands`) and holds nothing that is worth stealing. It may
bind its one port, opens no other connection and no file, and ends when the control socket closes.
"""

from __future__ import annotations

import json
import os
import resource
import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from connector.query.sandbox import confine

_STOP_SECONDS = 1.5


def main() -> None:
    """Read the certificate, shut ourselves in, listen, and serve until the connector goes."""
    control = socket.socket(fileno=int(sys.argv[1]))
    listen = json.loads(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        certificate = _certificate(listen)
        confine(readable=(), writable=(), port=listen["port"])
        # After that: the library starts threads, which must be inside as well.
        from connector.dataplane.flight.service import serve

        served = serve(control, host=listen["host"], port=listen["port"], certificate=certificate)
    except Exception as error:  # noqa: BLE001  whatever it is, the connector says it to the operator
        control.sendall(json.dumps({"error": str(error)[:300]}).encode())
        return
    control.sendall(json.dumps({"port": served.port}).encode())
    while True:
        with suppress(InterruptedError):
            if not control.recv(1):
                break
    threading.Timer(_STOP_SECONDS, os._exit, (0,)).start()
    served.shutdown()
    os._exit(0)  # nothing to save; a call whose client does not read would keep us


def _certificate(listen: dict[str, Any]) -> list[tuple[bytes, bytes]] | None:
    if not listen["certificate"]:
        return None
    chain = Path(listen["certificate"]).read_bytes()
    return [(chain, Path(listen["key"]).read_bytes() if listen["key"] else chain)]


if __name__ == "__main__":
    main()
