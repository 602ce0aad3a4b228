"""`hanse login` at a real provider, `oidc-provider`: with a browser, on another device, renewed, and revoked."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from connector.audit.log import Filter
from tests.support.command_line import CommandLine, finished
from tests.support.form_browser import browser
from tests.support.openid_console import SignOnPlace, sign_on_place

pytestmark = pytest.mark.e2e


async def log_in(line: CommandLine, person: str = "ada.data-team") -> tuple[int | None, str]:
    process = await line.start("login", "--provider", "clinic")
    async with browser() as one:
        consent = await one.submit(await one.open(await line.address(process)), login=person, password="any")
        await one.submit(consent)
    return await finished(process)


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[SignOnPlace]:
    async with sign_on_place(tmp_path) as made:
        yield made


@pytest.fixture
def line(place: SignOnPlace, tmp_path: Path) -> CommandLine:
    return CommandLine(place.base, tmp_path)


async def test_a_person_logs_in_with_the_browser_and_out(place: SignOnPlace, line: CommandLine) -> None:
    code, said = await log_in(line)
    assert (code, "as ada (clinic)" in said, "owner, read" in said) == (0, True, True), said
    assert (line.file.stat().st_mode & 0o777, sorted(line.file.parent.glob("*.part"))) == (0o600, [])
    before = line.saved
    code, said = await line.run("token", "mine", "--json")
    assert code == 0, said
    code, said = await line.run("logout")
    assert (code, "removed" in said, line.file.exists()) == (0, True, False), said
    assert "could not" not in said
    line.file.write_text(json.dumps(before | {"renew_at": "0"}))  # as a thief who copied the file
    line.file.chmod(0o600)
    code, said = await line.run("token", "mine")
    assert (code, "has ended" in said) == (3, True), said
    await place.parts.sequencer.settle()
    texts = [one.text for one in await place.parts.log.page(Filter(), before=None, limit=50)]
    assert [f"{place.issuer}#ada.data-team" in text for text in texts if "SessionEnded" in text] == [True]
    assert not [text for text in texts if before["token"] in text or before["refresh_token"] in text]


async def test_without_a_browser_a_person_logs_in_on_another_device(line: CommandLine) -> None:
    process = await line.start("login", "--provider", "clinic", display=False)
    assert process.stdout is not None
    assert process.stderr is not None
    async with asyncio.timeout(60):
        said = (await process.stderr.readline()).decode()
    [address] = re.findall(r"(http\S+)", said)
    async with browser() as one:
        page = await one.open(address)
        for _ in range(3):  # the code is in the address; the person confirms it
            if 'name="login"' not in page.text:
                page = await one.submit(page)
        consent = await one.submit(page, login="bo.board", password="any")
        await one.submit(consent)
    code, said = await finished(process)
    assert (code, "as bo (clinic)" in said) == (0, True), said
    assert line.saved["refresh_token"]


async def test_the_token_is_renewed_from_the_refresh_token_without_a_person(line: CommandLine) -> None:
    assert (await log_in(line))[0] == 0
    before = line.saved
    line.file.write_text(json.dumps(before | {"renew_at": "0"}))  # as near its end
    codes = await asyncio.gather(*(line.run("token", "mine", "--json") for _ in range(3)))
    assert [code for code, _ in codes] == [0, 0, 0], codes
    after = line.saved
    assert after["token"] != before["token"]
    assert float(after["renew_at"]) > time.time()
    assert line.file.stat().st_mode & 0o777 == 0o600


async def test_a_person_without_a_role_is_refused_and_nothing_is_kept(line: CommandLine) -> None:
    code, said = await log_in(line, "eve.strangers")
    assert (code, "sign_on_failed" in said, line.file.exists()) == (3, True, False), said


async def test_a_response_with_another_state_is_not_taken(line: CommandLine) -> None:
    process = await line.start("login", "--provider", "clinic")
    address = await line.address(process)
    back = re.findall("redirect_uri=([^&]+)", address)[0].replace("%3A", ":").replace("%2F", "/")
    assert urlsplit(back).hostname == "127.0.0.1"
    async with browser() as one:
        for path in (f"{back}?code=stolen&state=other", f"{back}?code=stolen", f"{back}/other?state=x"):
            assert (await one.http.get(path)).status_code == 404
    assert process.returncode is None
    process.terminate()
    await process.communicate()
    assert not line.file.exists()


async def test_an_unknown_provider_is_named_with_those_there_are(line: CommandLine) -> None:
    code, said = await line.run("login", "--provider", "nowhere")
    assert (code, "clinic" in said) == (1, True), said


async def test_what_is_in_the_place_of_the_file_is_not_followed(line: CommandLine) -> None:
    other = line.folder / "other"
    other.write_text("mine")
    line.file.parent.mkdir()
    line.file.symlink_to(other)
    other.chmod(0o600)
    other.write_text("{}")
    assert (await log_in(line))[0] == 0
    assert (other.read_text(), line.file.is_symlink()) == ("{}", False)
