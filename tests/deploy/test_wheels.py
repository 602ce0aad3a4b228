"""Both wheels, as `make dist` builds them, and the client's as a connector serves it."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest

from connector.infra.client_wheel import pack_wheel, wheel_name
from tests.support import dist


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return dist.build(tmp_path_factory.mktemp("wheels") / "dist")


@pytest.mark.parametrize("name", ["hanse", "hanse_server"])
def test_a_wheel_has_the_files_that_git_lists_and_no_others(wheels: dict[str, Path], name: str) -> None:
    assert dist.list_differences(name, wheels[name]) == []
    with zipfile.ZipFile(wheels[name]) as archive:
        assert any(path.endswith("LICENSE") for path in archive.namelist())


def test_the_served_client_is_the_built_one(wheels: dict[str, Path]) -> None:
    def list_members(wheel: zipfile.ZipFile) -> dict[str, bytes]:
        """All but who made it; of its metadata the fields, as the readme is of the time of the installation."""
        kept = [path for path in wheel.namelist() if not path.endswith(("/RECORD", "/WHEEL"))]
        return {path: wheel.read(path).split(b"\n\n# hanse")[0] for path in kept}

    assert wheels["hanse"].name == wheel_name()
    with zipfile.ZipFile(wheels["hanse"]) as built, zipfile.ZipFile(io.BytesIO(pack_wheel())) as served:
        assert list_members(served) == list_members(built)
