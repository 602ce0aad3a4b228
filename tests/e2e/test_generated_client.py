"""A client that others generate from `openapi.yaml` compiles, makes calls, and reads a refusal as a problem object."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import Running

ROOT = Path(__file__).parents[2]
GENERATOR = "openapi-python-client==0.29.1"  # not in the lock file, as it would hold back the product's own libraries
UV = Path(sys.executable).with_name("uv")
OVERRIDES = '{"content_type_overrides": {"application/vnd.apache.arrow.stream": "application/octet-stream"}}'
CALLS = """
import json, sys
from hanse_api import AuthenticatedClient
from hanse_api.api.datasets import get_api_v1_datasets_name_get as get
from hanse_api.api.datasets import list_datasets_api_v1_datasets_get as list_datasets
from hanse_api.models import Problem

client = AuthenticatedClient(base_url=sys.argv[1], token=sys.argv[2])
names = [one.name for one in list_datasets.sync(client=client)]
absent = get.sync("absent", client=client)
bad = list_datasets.sync(client=client, limit=-1)
assert isinstance(absent, Problem) and isinstance(bad, Problem), (absent, bad)
print(json.dumps({"names": names, "absent": [absent.status, absent.code], "bad": [bad.status, bad.code]}))
"""


def uv(*arguments: str, at: Path) -> str:
    """Run a command in an environment of its own that has the generator and what its clients need."""
    command = [str(UV), "run", "--quiet", "--no-project", "--with", GENERATOR, *arguments]
    done = subprocess.run(command, cwd=at, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode and ("dns error" in done.stderr or "Failed to fetch" in done.stderr):
        pytest.skip(f"{GENERATOR} cannot be had here")
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.timeout(600)
def test_a_generated_client_compiles_and_makes_calls(running: Running, tmp_path: Path) -> None:
    north = running.space.members["north"]
    (tmp_path / "config.json").write_text(OVERRIDES)
    uv(
        "openapi-python-client", "generate", "--path", str(ROOT / "openapi.yaml"), "--meta", "none",
        "--config", "config.json", "--output-path", "hanse_api", "--fail-on-warning", at=tmp_path,
    )  # fmt: skip
    uv("python", "-W", "error", "-m", "compileall", "-q", "hanse_api", at=tmp_path)
    (tmp_path / "calls.py").write_text(CALLS)
    said = json.loads(uv("python", "calls.py", f"http://127.0.0.1:{north.management_port}", north.token, at=tmp_path))
    assert "patients" in said.pop("names")
    assert said == {"absent": [404, "not_found"], "bad": [400, "bad_input"]}
