"""A member gets its membership credential from the catalogue, is let in by it, and is out when it is suspended."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import yaml

from tests.support.ports import free_range
from tests.support.processes import Failed, Process, catalogue_process
from tests.support.waiting import eventually

TYPE = "MembershipCredential"
LIST_SECONDS, PRESENTATION_SECONDS = 5, 1  # how long copies of a status list and of a presentation count
REFUSED = (401, 502)  # by the owner, as our connector says it
SPARE_SECONDS = 20.0  # for a busy machine


@dataclass(frozen=True, slots=True)
class Space:
    """A catalogue that issues, an owner that asks for its credential, and a reader."""

    catalogue: Process
    owner: Process
    reader: Process

    def tell(self, method: str, path: str, body: dict[str, Any]) -> None:
        """A call of the operator."""
        client = self.catalogue.api()
        client.call(method, path, body)
        client.close()

    def state(self) -> str:
        """The state of the reader's one credential at the operator."""
        client = self.catalogue.api()
        rows = client.get("/credentials?member=reader")["credentials"]
        client.close()
        return " ".join(row["state"] for row in rows)


@pytest.fixture
def space(tmp_path: Path) -> Iterator[Space]:
    first = free_range(5)
    catalogue = catalogue_process(
        tmp_path / "catalogue", first, ISSUER_TYPES=TYPE, ISSUER_STATUS_SECONDS=str(LIST_SECONDS)
    )
    rules = {
        "issuers": {catalogue.participant: [TYPE]},
        "scopes": [TYPE],
        "presentation_seconds": PRESENTATION_SECONDS,
    }
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules))
    demanding = {"CREDENTIAL_RULES": str(tmp_path / "rules.yaml"), "LOG_LEVEL": "info"}
    holding = {"CREDENTIAL_ISSUERS": catalogue.participant, "CREDENTIAL_SCOPES": TYPE}
    made = Space(
        catalogue,
        Process("owner", tmp_path / "owner", first + 1, first + 2, settings=demanding),
        Process("reader", tmp_path / "reader", first + 3, first + 4, settings=holding),
    )
    processes = (made.catalogue, made.owner, made.reader)
    try:
        for process in processes:
            process.start(wait=False)
        for process in processes:
            process.wait()
        yield made
    finally:
        for process in processes:
            process.kill()


def is_let_in(space: Space) -> bool:
    """Whether the owner shows the reader its catalogue."""
    client, owner = space.reader.api(), space.owner
    asked = {"participant": owner.participant, "address": owner.base}
    try:
        client.get(f"/catalog?{urlencode(asked)}")
    except Failed as error:
        if error.status not in REFUSED:
            raise
        return False
    finally:
        client.close()
    return True


def holds(process: Process) -> list[dict[str, Any]]:
    """What the log of a connector says of credentials that it stored."""
    client = process.api()
    records: list[dict[str, Any]] = client.get("/audit/events?kind=CredentialStored")["records"]
    client.close()
    return records


def test_a_member_is_let_in_by_the_credential_of_its_admission_until_it_is_suspended(space: Space) -> None:
    data, offer = space.owner.publish("numbers")
    assert not is_let_in(space)
    space.tell("POST", "/members", {"id": space.reader.participant, "name": "reader"})
    (record,) = eventually(lambda: holds(space.reader))
    stored = record["body"]["detail"]
    assert (stored["issuer"], stored["types"][-1]) == (space.catalogue.participant, TYPE)
    assert eventually(space.state) == "active"
    space.reader.agree(space.owner, data, offer)

    space.tell("PATCH", "/members/reader", {"status": "suspended"})
    began = time.monotonic()
    eventually(lambda: not is_let_in(space))
    assert time.monotonic() - began < LIST_SECONDS + PRESENTATION_SECONDS + SPARE_SECONDS
    assert space.state() == "suspended"
    with pytest.raises((Failed, RuntimeError)):
        space.reader.agree(space.owner, data, offer)
    log = (space.owner.directory / "log").read_text()
    assert "is withdrawn ('suspension')" in log
    assert f"expected a valid credential for the scope org.eclipse.dspace.dcp.vc.type:{TYPE}:read" in log

    space.tell("PATCH", "/members/reader", {"status": "active"})
    eventually(lambda: is_let_in(space))
    space.reader.agree(space.owner, data, offer)
