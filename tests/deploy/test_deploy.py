"""What stands under deploy/: linted, and held against the settings that the programs really have."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from compose_spec import PyCompose

from catalogue.__main__ import commands as catalogue_commands
from catalogue.settings import CatalogueSettings as CatalogueSettings
from connector.__main__ import commands as connector_commands
from connector.settings import Settings as ConnectorSettings

DEPLOY = Path(__file__).parents[2] / "deploy"
SERVICES = ("catalogue", "owner", "consumer")


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return found


def known(settings: type[ConnectorSettings] | type[CatalogueSettings]) -> set[str]:
    return {f"HANSE_{name.upper()}" for name in settings.model_fields}


def test_the_dockerfile_passes_its_linter() -> None:
    linter = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if linter is None:  # a platform without the linter's wheel: its rules are checked below all the same
        assert sys.platform != "linux"
        return
    done = subprocess.run([linter, str(DEPLOY / "Dockerfile")], capture_output=True, text=True, check=False)
    assert done.stdout + done.stderr == ""
    assert done.returncode == 0


def test_the_image_runs_as_a_user_of_its_own() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    assert re.findall(r"^USER (\S+)", text, re.M)[-1] == "10001:10001"
    assert "latest" not in text


@pytest.mark.parametrize(
    ("package", "commands"), [("connector", connector_commands), ("catalogue", catalogue_commands)]
)
def test_the_image_asks_each_service_by_its_own_settings(package: str, commands: typer.Typer) -> None:
    check = (DEPLOY / "Dockerfile").read_text().partition("HEALTHCHECK")[2]
    assert f"python -m {package} ready" in check.partition("ENTRYPOINT")[0]
    assert "ready" in [one.callback.__name__ for one in commands.registered_commands if one.callback]


@pytest.mark.parametrize("file", ["connector.env", "catalogue.env"])
def test_no_token_of_an_administrator_goes_into_the_journal(file: str) -> None:
    data, token = (
        re.search(rf"^HANSE_{name}=(\S+)$", (DEPLOY / "settings" / file).read_text(), re.M)
        for name in ("DATA_DIR", "ADMIN_TOKEN_FILE")
    )
    assert data is not None
    assert token is not None
    assert Path(token[1]).parent == Path(data[1])  # the one directory that the unit may write


def test_the_compose_file_is_one_by_the_specification() -> None:
    assert PyCompose((DEPLOY / "compose.yaml").read_text()) is not None


@pytest.mark.parametrize("name", SERVICES)
def test_services_have_a_read_only_root_no_capabilities_and_no_open_port(name: str) -> None:
    service = compose()["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])


@pytest.mark.parametrize("name", SERVICES)
def test_services_are_set_by_settings_that_exist(name: str) -> None:
    settings = CatalogueSettings if name == "catalogue" else ConnectorSettings
    given = {key for key in compose()["services"][name]["environment"] if key.startswith("HANSE_")}
    assert given <= known(settings)


@pytest.mark.parametrize(
    ("file", "settings"), [("connector.env", ConnectorSettings), ("catalogue.env", CatalogueSettings)]
)
def test_the_examples_of_settings_are_accepted(
    file: str, settings: type[ConnectorSettings] | type[CatalogueSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = (DEPLOY / "settings" / file).read_text().splitlines()
    pairs = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    assert set(pairs) <= known(settings)
    for key, value in pairs.items():
        monkeypatch.setenv(key, value)
    assert settings() is not None


def test_the_unit_keeps_the_service_in_its_own_directories() -> None:
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment, method-assign]  # keys keep their case
    unit.read(DEPLOY / "systemd" / "hanse-connector.service")
    assert unit["Service"]["ProtectSystem"] == "strict"
    assert unit["Service"]["NoNewPrivileges"] == "true"
    assert unit["Service"]["User"] == "hanse"
    assert unit["Service"]["CapabilityBoundingSet"] == ""
