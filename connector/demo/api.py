"""The management API and the catalogue, as the demo's people call them: JSON over HTTP with a bearer token."""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from connector.errors import HanseError

_SECONDS = 60.0


class Answered(HanseError):
    """The API said no; `code` and message are its own."""


@dataclass(frozen=True, slots=True)
class Api:
    """One service and a token for it."""

    url: str
    token: str

    def get(self, path: str, **query: object) -> Any:
        asked = f"{path}?{urlencode({k: v for k, v in query.items() if v is not None})}" if query else path
        return self._call("GET", asked, None)

    def post(self, path: str, body: object = None) -> Any:
        return self._call("POST", path, body)

    def delete(self, path: str) -> Any:
        return self._call("DELETE", path, None)

    def text(self, path: str) -> str:
        return self._send("GET", path, None).decode()

    def download(self, path: str, target: Path) -> Path:
        """Write an answer to a file; what is downloaded in the demo fits in memory."""
        target.write_bytes(self._send("GET", path, None))
        return target

    def _call(self, method: str, path: str, body: object) -> Any:
        text = self._send(method, path, body)
        return json.loads(text) if text else None

    def _send(self, method: str, path: str, body: object) -> bytes:
        parts = urlsplit(self.url)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=_SECONDS)
        try:
            headers = {"authorization": f"Bearer {self.token}", "content-type": "application/json"}
            payload = None if body is None else json.dumps(body)
            connection.request(method, f"/api/v1{path}", body=payload, headers=headers)
            answer = connection.getresponse()
            text = answer.read()
        finally:
            connection.close()
        if answer.status >= 400:
            raise _refusal(answer.status, text)
        return text


def _refusal(status: int, text: bytes) -> Answered:
    try:
        problem = json.loads(text)
        return Answered(str(problem["detail"]), code=str(problem["code"]))
    except (ValueError, KeyError, TypeError):
        return Answered(f"status {status}", code="failed")


def segment(text: str) -> str:
    """A value as one segment of a path."""
    return quote(text, safe="")
