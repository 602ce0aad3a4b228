"""A job's token: found in the projected file, exchanged, and renewed for as long as the job runs."""

from __future__ import annotations

import json
import pickle
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hanse
import pytest
from hanse import config
from hanse._transport import workload
from hanse._transport.workload import WorkloadToken
from hanse.agreement import Name, TransferAccess
from hanse.client import Dataset
from hanse.errors import BadInput, Broken, Unauthenticated
from joserfc import jwt
from joserfc.jwk import import_key

from tests.client.support import Asked, Connector, batch, chunked, complete, connector, ipc
from tests.support.own_name import changed

LIFETIME = 100.0
SELF, EXCHANGE = ("GET", "/self"), ("POST", "/oauth/token")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connector]:
    """A connector that exchanges tokens and numbers them; a projected file, and no login."""
    file = tmp_path / "token"
    file.write_text("head.body.first\n")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for name in ("HANSE_URL", "HANSE_TOKEN", "HANSE_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HANSE_WORKLOAD_TOKEN_FILE", str(file))
    monkeypatch.setenv("HANSE_JOB_ID", "job-7")
    with connector() as made:
        made.routes[SELF] = {"caller": "trainer"}
        made.routes[EXCHANGE] = lambda _: {"access_token": f"t-{exchanges(made)}", "expires_in": LIFETIME}
        yield made


def exchanges(made: Connector) -> int:
    return made.calls().count("POST /oauth/token")


def used(made: Connector) -> list[str]:
    return [one.headers.get("authorization", "") for one in made.asked if one.path == "/self"]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1_000.0]
    monkeypatch.setattr(workload, "time", changed(time, monotonic=lambda: now[0]))
    return now


def test_a_job_is_let_in_without_a_person_for_longer_than_its_tokens(
    place: Connector, clock: list[float], tmp_path: Path
) -> None:
    with hanse.connect(place.url) as space:
        for _ in range(5):
            assert space.me()["caller"] == space.me()["caller"] == "trainer"
            clock[0] += LIFETIME
    assert exchanges(place) == 5
    assert used(place) == [f"Bearer t-{number}" for number in (1, 1, 2, 2, 3, 3, 4, 4, 5, 5)]


def test_a_token_serves_to_its_end_while_no_new_one_can_be_had(place: Connector, clock: list[float]) -> None:
    with hanse.connect(place.url) as space:
        space.me()
        place.routes[EXCHANGE] = lambda _: {"no": "token"}
        clock[0] += LIFETIME * 0.85
        space.me()
        space.me()
        assert exchanges(place) == 2  # not again at once
        clock[0] += workload.RETRY_AFTER
        space.me()
        assert exchanges(place) == 3
        clock[0] += LIFETIME
        with pytest.raises(Broken):
            space.me()
    assert used(place) == ["Bearer t-1"] * 4


def test_it_is_renewed_before_its_end_from_what_the_file_has_then(
    place: Connector, clock: list[float], tmp_path: Path
) -> None:
    forms: list[Any] = []

    def exchange(asked: Asked) -> dict[str, Any]:
        forms.append(asked.body)
        return {"access_token": f"t-{len(forms)}", "expires_in": LIFETIME}

    place.routes[EXCHANGE] = exchange
    with hanse.connect(place.url) as space:
        space.me()
        (tmp_path / "token").write_text("head.body.second")
        clock[0] += LIFETIME * 0.79
        space.me()
        clock[0] += LIFETIME * 0.02
        space.me()
    assert used(place) == ["Bearer t-1", "Bearer t-1", "Bearer t-2"]
    assert ["first" in str(form) for form in forms] == [True, False]
    assert all("job-7" in str(form) for form in forms)


def test_a_refused_token_is_exchanged_once_more(place: Connector) -> None:
    place.routes[SELF] = lambda asked: (
        (401, {"code": "unauthenticated", "detail": "expired"}) if asked.headers["authorization"].endswith("1") else {}
    )
    with hanse.connect(place.url) as space:
        space.me()
    assert used(place) == ["Bearer t-1", "Bearer t-2"]
    place.routes[SELF] = (401, {"code": "unauthenticated", "detail": "expired"})
    with hanse.connect(place.url) as space, pytest.raises(Unauthenticated):
        space.me()
    assert exchanges(place) == 4  # and no more


def test_a_refused_exchange_names_the_file_and_the_log(place: Connector) -> None:
    place.routes[EXCHANGE] = (400, {"error": "invalid_grant"})
    with hanse.connect(place.url) as space, pytest.raises(Unauthenticated, match="log has the reason"):
        space.me()


@pytest.mark.parametrize(
    "answer", [{}, [], {"access_token": "a b", "expires_in": 5}, {"access_token": "a", "expires_in": True}]
)
def test_another_answer_is_refused(place: Connector, answer: Any) -> None:
    place.routes[EXCHANGE] = answer
    with hanse.connect(place.url) as space, pytest.raises(Broken, match="another form"):
        space.me()


@pytest.mark.parametrize("text", ["", "no-token", "a.b.c d", "a.b." + "c" * 20_000])
def test_a_file_without_a_token_is_refused_and_not_sent(place: Connector, tmp_path: Path, text: str) -> None:
    (tmp_path / "token").write_text(text)
    with hanse.connect(place.url) as space, pytest.raises(BadInput, match="expected a signed token"):
        space.me()
    assert place.asked == []


def test_a_missing_file_is_named(place: Connector, tmp_path: Path) -> None:
    (tmp_path / "token").unlink()
    with hanse.connect(place.url) as space, pytest.raises(BadInput, match="check the projected volume"):
        space.me()


def test_a_given_token_goes_before_the_file_and_the_usual_file_is_found(
    place: Connector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert config.find_connection(token="given").token == "given"
    assert isinstance(config.find_connection().token, WorkloadToken)
    monkeypatch.delenv("HANSE_WORKLOAD_TOKEN_FILE")
    assert config.find_connection().token == ""
    monkeypatch.setattr(config, "WORKLOAD_FILE", tmp_path / "token")
    assert config.find_connection().source == str(tmp_path / "token")


@pytest.mark.parametrize("job", ["x" * 251, "a\nb", "caf\u00e9"])
def test_a_job_that_no_header_can_hold_is_refused(place: Connector, monkeypatch: pytest.MonkeyPatch, job: str) -> None:
    monkeypatch.setenv("HANSE_JOB_ID", job)
    with pytest.raises(BadInput, match="expected HANSE_JOB_ID"):
        hanse.connect(place.url)


def test_a_job_streams_for_longer_than_three_tokens_and_the_owner_gets_its_id(
    place: Connector, clock: list[float]
) -> None:
    place.routes["GET", "/transfers/t-1/address"] = lambda _: {
        "endpoint": f"{place.url}/data", "ticket": "owners", "expires": 1.0,
    }  # fmt: skip
    place.routes["GET", "/data"] = lambda _: chunked(ipc([batch(1, 2)], complete(2)))
    with hanse.connect(place.url) as space:
        held = Dataset(space, TransferAccess(Name("north", "people"), "urn:people", "a", "t-1", ""))
        for _ in range(4):
            assert held.stream().to_arrow().num_rows == 2
            clock[0] += LIFETIME
    asked = [one.headers for one in place.asked if one.path == "/data"]
    assert [one["hanse-job"] for one in asked] == ["job-7"] * 4
    assert exchanges(place) >= 4


def test_the_job_that_the_site_signed_goes_before_the_declared_one(place: Connector) -> None:
    place.routes[EXCHANGE] = {"access_token": "t-1", "expires_in": LIFETIME, "job": "pod-9"}
    with hanse.connect(place.url) as space:
        space.me()
        assert space.api.job == "pod-9"


@pytest.mark.parametrize("job", ["", None, 7, "x" * 251, "a\nb", "caf\u00e9"])
def test_a_job_that_no_header_can_hold_is_not_taken_over(place: Connector, job: Any) -> None:
    place.routes[EXCHANGE] = {"access_token": "t-1", "expires_in": LIFETIME, "job": job}
    with hanse.connect(place.url) as space:
        space.me()
        assert space.api.job == "job-7"


def test_a_pickled_one_holds_no_token(place: Connector) -> None:
    place.routes[EXCHANGE] = {"access_token": "no-part-of-a-path", "expires_in": LIFETIME}
    with hanse.connect(place.url) as space:
        space.me()
        sent = pickle.dumps(space)
    assert (b"no-part-of-a-path" in sent, b"head.body" in sent) == (False, False)
    assert pickle.loads(sent).me() == {"caller": "trainer"}


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The key file of the service `pipeline`, which goes before the job's file."""
    file = tmp_path / "key.json"
    workload.make_key(file)
    monkeypatch.setenv("HANSE_CLIENT_ID", "pipeline")
    monkeypatch.setenv("HANSE_CLIENT_KEY", str(file))
    return file


def test_a_service_signs_a_new_assertion_for_each_exchange(place: Connector, clock: list[float], key: Path) -> None:
    with hanse.connect(place.url) as space:
        for _ in range(2):
            assert space.me()["caller"] == "trainer"
            clock[0] += LIFETIME
        sent = pickle.dumps(space)
    asked = [one for one in place.asked if one.path == "/oauth/token"]
    forms = [one.body for one in asked]
    claims = [jwt.decode(form["client_assertion"], _load(key)).claims for form in forms]
    assert {(one["iss"], one["sub"], one["aud"]) for one in claims} == {
        ("pipeline", "pipeline", f"{place.url}/api/v1/oauth/token")
    }
    assert [one["exp"] - one["iat"] for one in claims] == [60, 60]
    assert len({one["jti"] for one in claims}) == 2
    assert {(form["grant_type"], form["job"]) for form in forms} == {("client_credentials", "job-7")}
    assert json.loads(key.read_text())["d"].encode() not in sent


def _load(file: Path) -> Any:
    return import_key(json.loads(file.read_text()))


def test_half_of_a_service_is_refused(place: Connector, key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HANSE_CLIENT_ID")
    with pytest.raises(BadInput, match="HANSE_CLIENT_ID with HANSE_CLIENT_KEY"):
        hanse.connect(place.url)


def test_a_key_that_others_can_read_is_not_used(place: Connector, key: Path) -> None:
    key.chmod(0o640)
    with hanse.connect(place.url) as space, pytest.raises(BadInput, match="chmod 600"):
        space.me()
    assert place.asked == []


@pytest.mark.parametrize("text", ["", "x", "[]", "{}", '{"kty": "oct", "k": "YQ"}', '{"kty": "EC"}', "[" * 9_000])
def test_a_file_without_a_private_key_is_refused(place: Connector, key: Path, text: str) -> None:
    key.write_text(text)
    with hanse.connect(place.url) as space, pytest.raises(BadInput, match="expected a private JWK"):
        space.me()
    assert place.asked == []


def test_a_public_key_signs_nothing(place: Connector, key: Path) -> None:
    key.write_text(json.dumps(_load(key).as_dict(private=False)))
    with hanse.connect(place.url) as space, pytest.raises(BadInput, match="expected a private JWK"):
        space.me()


def test_a_new_key_is_for_its_owner_alone_and_replaces_nothing(tmp_path: Path) -> None:
    file, link = tmp_path / "new.json", tmp_path / "link.json"
    link.symlink_to(tmp_path / "elsewhere.json")
    public = workload.make_key(file)
    assert (file.stat().st_mode & 0o777, "d" in public["keys"][0]) == (0o600, False)
    for taken in (file, link):
        with pytest.raises(BadInput, match="name a new file"):
            workload.make_key(taken)
