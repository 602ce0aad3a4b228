"""The first start of somebody who has read nothing but the README: defaults, relative paths, and what goes wrong."""

from __future__ import annotations

import os
import shlex
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from connector.settings import Settings
from tests.support.certificates import self_signed
from tests.support.ports import free_range
from tests.support.processes import Failed, Process

README = (Path(__file__).parents[2] / "README.md").read_text()
SERVE = [sys.executable, "-m", "connector", "serve"]


def ended(folder: Path, **settings: str) -> tuple[int, str]:
    """How a start that cannot work ends, and what it says."""
    ports = free_range(2)
    ours = {"PUBLIC_PORT": str(ports), "MANAGEMENT_PORT": str(ports + 1), **settings}
    env = {**os.environ, "PYTHONPATH": str(Path.cwd()), **{f"HANSE_{name}": value for name, value in ours.items()}}
    ran = subprocess.run(SERVE, cwd=folder, env=env, capture_output=True, text=True, timeout=120)
    return ran.returncode, ran.stderr


@contextmanager
def started(folder: Path, **settings: str) -> Iterator[Process]:
    """A connector that was started in `folder`, with paths that begin there."""
    ports = free_range(2)
    one = Process("clinic", folder, ports, ports + 1, settings=settings)
    one.program = (
        "-c",
        f"import os; os.chdir({str(folder)!r}); from connector import __main__ as m; m.commands(['serve'])",
    )
    one.start()
    try:
        yield one
    finally:
        one.kill()


def test_text_is_registered_where_directories_are_told_relative_to_the_start(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "beds.csv").write_text("bed,ward\n1,onco\n2,neuro\n")
    with started(tmp_path, DATA_DIR="var/connector", SOURCE_ROOTS="data", ADMIN_TOKEN_FILE="admin.token") as clinic:
        made = clinic.api().post("/datasets", {"name": "beds", "path": "data/beds.csv"})
        assert made["rows"] == 2
        with pytest.raises(Failed, match=f"looked for in {tmp_path}"):
            clinic.api().post("/datasets", {"name": "more", "path": "beds.csv"})


def test_a_file_of_sqlite_is_one_process_s_alone(tmp_path: Path) -> None:
    (tmp_path / "link.db").symlink_to(tmp_path / "var" / "connector.db")
    with started(tmp_path, DATA_DIR="var", SOURCE_ROOTS=".") as clinic:
        other = {"DATA_DIR": str(tmp_path / "other"), "DATABASE_URL": f"sqlite:///{tmp_path}/link.db"}
        code, said = ended(tmp_path, **other)
    assert code == 1
    assert f"HANSE_DATABASE_URL: {clinic.directory}/var/connector.db.lock cannot be locked" in said
    assert "take PostgreSQL for both" in said


def test_an_offer_to_members_is_warned_of_where_there_is_no_register(tmp_path: Path) -> None:
    pq.write_table(pa.table({"age": [30, 40]}), tmp_path / "beds.parquet")
    form = "offer: members\ndataset: beds\nmay: [query]\nwho: {membership: active}\n"
    with started(tmp_path, DATA_DIR="var", SOURCE_ROOTS=".", ADMIN_TOKEN_FILE="admin.token") as clinic:
        api = clinic.api()
        api.post("/datasets", {"name": "beds", "path": "beds.parquet"})
        for path, more in (("/policies/lint", {}), ("/policies/lint", {"dataset": "beds"}), ("/offers", {})):
            problems = api.post(path, {"form": form, **more})["problems"]
            assert ("warning", "source_absent") in [(one["level"], one["code"]) for one in problems]
        tried = api.post("/policies/test", {"form": form, "participant": "did:web:lab.example"})
        assert "none, as HANSE_TRUST_ANCHOR is not set" in " ".join(tried["explanation"])


def test_data_may_come_after_the_start_and_what_a_killed_connector_had_read_goes_with_it(tmp_path: Path) -> None:
    left = tmp_path / "var" / "outside" / "blocks" / "cache-left"
    left.mkdir(parents=True)
    with started(tmp_path, DATA_DIR="var", SOURCE_ROOTS="data", ADMIN_TOKEN_FILE="admin.token") as clinic:
        assert not left.exists()
        assert f"path={tmp_path / 'data'}" in (tmp_path / "log").read_text()
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "beds.csv").write_text("bed,ward\n1,onco\n2,neuro\n")
        assert clinic.api().post("/datasets", {"name": "beds", "path": "data/beds.csv"})["rows"] == 2


def test_the_commands_of_the_readme_make_an_offer(tmp_path: Path) -> None:
    pq.write_table(pa.table({"age": [30, 40]}), tmp_path / "patients.parquet")
    with started(tmp_path) as clinic:
        env = {"PATH": str(Path(sys.executable).parent), "HOME": str(tmp_path)}
        for line in README.partition("## Your own connector")[2].split("```sh\n")[2].split("```")[0].splitlines():
            words = shlex.split(
                line.replace("8081", str(clinic.management_port)).replace("/srv/data", str(tmp_path)), True
            )
            ran = subprocess.run(
                words,
                cwd=tmp_path,
                env=env,
                input=clinic.token,
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            assert ran.returncode == 0, (line, ran.stderr)
            if "new" in words:  # as its comment says
                offer = tmp_path / "offer.yaml"
                offer.write_text(offer.read_text().replace("urn:example:dataset", "patients"))
        assert clinic.api().get("/offers")[0]["dataset"] == "urn:hanse:clinic:patients"


def test_directories_are_told_from_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Settings().data_dir == tmp_path / "var" / "connector"
    monkeypatch.setenv("HANSE_SOURCE_ROOTS", "data,/srv/data")
    assert Settings().source_roots == (tmp_path / "data", Path("/srv/data"))


def test_the_log_says_where_the_console_is(tmp_path: Path) -> None:
    with started(tmp_path, LOG_LEVEL="info") as clinic:
        assert f"console=http://127.0.0.1:{clinic.management_port}/" in (tmp_path / "log").read_text()


@pytest.mark.parametrize("what", ["missing", "not_pem", "without_its_key"])
def test_a_certificate_that_cannot_be_used_is_named(tmp_path: Path, what: str) -> None:
    certificate = tmp_path / "certificate.pem"
    if what == "not_pem":
        certificate.write_text("no certificate")
    if what == "without_its_key":
        whole = self_signed(tmp_path / "whole.pem").read_text()
        end = "-----END CERTIFICATE-----\n"
        certificate.write_text(whole[whole.index("-----BEGIN CERT") : whole.index(end)] + end)
    code, said = ended(tmp_path, TLS_CERTIFICATE=str(certificate))
    assert code == 1
    assert "HANSE_TLS_CERTIFICATE" in said
    assert str(certificate) in said


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {"DATABASE_URL": "postgresql+psycopg://u:secret@127.0.0.1:1/db"},
            "check that it runs, and check HANSE_DATABASE_URL",
        ),
        ({"DATA_DIR": "/dev/null/hanse"}, "HANSE_DATA_DIR: expected a folder to write to, got /dev/null/hanse"),
        ({"PUBLIC_HOST": "999.1.1.1"}, "set HANSE_PUBLIC_HOST to another value"),
    ],
)
def test_what_the_machine_has_not_is_told_in_a_line(tmp_path: Path, settings: dict[str, str], expected: str) -> None:
    code, said = ended(tmp_path, **settings)
    assert code == 1
    assert expected in said
    assert len(said.splitlines()) == 1
    assert "secret" not in said


def test_a_certificate_that_was_renewed_is_read_on_a_hangup_and_an_end_waits_for_no_reader_of_events(
    tmp_path: Path,
) -> None:
    ports = free_range(3)
    certificate = self_signed(tmp_path / "certificate.pem")
    clinic = Process("clinic", tmp_path, ports, ports + 1, settings={"FLIGHT_PORT": str(ports + 2)})
    clinic.certificate = certificate
    clinic.start()
    try:
        assert clinic.running is not None
        for make in (self_signed, lambda path: path.write_text("half a cert"), self_signed):
            make(certificate)
            clinic.running.send_signal(signal.SIGHUP)
            if "BEGIN" in certificate.read_text():
                wanted = ssl.PEM_cert_to_DER_cert(certificate.read_text().partition("-----BEGIN PRIVATE")[0])
                for port in (ports, ports + 2):
                    until(lambda: presented(port) == wanted)  # noqa: B023  # called at once
        stream = clinic.api().start("GET", "/events/stream")
        assert stream.readline() == b": joined\n"
        clinic.running.send_signal(signal.SIGTERM)
        assert clinic.running.wait(timeout=20) == 0  # connections that stay are given thirty seconds
    finally:
        clinic.kill()


def presented(port: int) -> bytes:
    return ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate(("127.0.0.1", port), timeout=10))


def until(holds: Callable[[], bool]) -> None:
    ends = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < ends
        time.sleep(0.05)


def test_a_setting_that_is_nearly_one_is_asked_about(tmp_path: Path) -> None:
    with started(tmp_path, SOURCE_ROOT="data", LOG_LEVEL="warning", URL="http://127.0.0.1") as clinic:
        said = (clinic.directory / "log").read_text()
        assert "HANSE_SOURCE_ROOT is not a setting and is ignored; did you mean HANSE_SOURCE_ROOTS?" in said
        assert "HANSE_URL" not in said
