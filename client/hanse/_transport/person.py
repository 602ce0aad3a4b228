"""A person's token: renewed without a person from the refresh token that `hanse login` saved."""

from __future__ import annotations

import time
from pathlib import Path
from threading import Lock
from typing import Any

from hanse._transport.login_file import read_login, renewing, write_login
from hanse._transport.workload import GRANT, RETRY_AFTER, Exchange, RenewedToken, read_answer, renewal_lead
from hanse.errors import HanseError, Unauthenticated

ID_TYPE = "urn:ietf:params:oauth:token-type:id_token"


class PersonToken:
    """Threads may share it, and processes the file, whose newest token each of them takes.

    A pickled one holds the file's path, never a token.
    """

    job = ""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._lock = Lock()
        self._text, self._renew_at, self._dropped = "", 0.0, ""

    def __reduce__(self) -> tuple[Any, ...]:
        return PersonToken, (self.file,)

    def __repr__(self) -> str:
        return f"<PersonToken {self.file}>"

    def current(self, exchange: Exchange, endpoint: str = "") -> str:
        """Return a token that lasts. One that has not ended is returned where no new one can be had now.

        Raises:
            Unauthenticated: the login has ended at the provider or here.
            HanseError: provider or connector cannot be reached, or answers something else.
        """
        with self._lock:
            if not self._text or time.time() >= self._renew_at:
                self._renew(exchange)
            return self._text

    def drop(self, text: str) -> None:
        """Forget a token that the connector refused, so that the next call renews it."""
        with self._lock:
            if self._text == text:
                self._text, self._dropped = "", text

    def _renew(self, exchange: Exchange) -> None:
        with renewing(self.file):
            saved = read_login(self.file)
            if not saved.get("refresh_token"):
                raise Unauthenticated(f"the login in {self.file} has ended; run `hanse login`", code="login_ended")
            if saved["token"] != self._dropped and time.time() < float(saved["renew_at"]):  # another process renewed it
                self._text, self._renew_at = saved["token"], float(saved["renew_at"])
                return
            try:
                saved = renew(self.file, saved, exchange)
                self._text, self._renew_at = saved["token"], float(saved["renew_at"])
            except HanseError:
                if saved["token"] == self._dropped or time.time() >= float(saved["ends_at"]):
                    raise
                self._text, self._renew_at = saved["token"], min(time.time() + RETRY_AFTER, float(saved["ends_at"]))


Token = str | RenewedToken | PersonToken


def renew(file: Path, saved: dict[str, str], exchange: Exchange) -> dict[str, str]:
    """Renew a login: refresh at the provider, exchange at the connector; return what is saved now.

    A rotated refresh token is saved before the exchange, which may fail.
    """
    from hanse._transport.provider import ProviderConnection

    answer = ProviderConnection(saved["issuer"], saved["client_id"]).refresh(saved["refresh_token"])
    saved = saved | {"refresh_token": answer.refresh_token or saved["refresh_token"]}
    write_login(file, saved)
    saved = saved | exchange_id_token(answer.id_token, exchange)
    write_login(file, saved)
    return saved


def exchange_id_token(id_token: str, exchange: Exchange) -> dict[str, str]:
    """Exchange an ID token at the connector; return the members of the file that hold the new token."""
    form = {"grant_type": GRANT, "subject_token_type": ID_TYPE, "subject_token": id_token}
    now = time.time()
    text, seconds, _ = read_answer(exchange(form))
    renew_at = now + seconds - renewal_lead(seconds)
    return {"token": text, "ends_at": str(now + seconds), "renew_at": str(renew_at)}
