"""`hanse dataset add` while it takes long: a bar with the files that are done, and Ctrl-C."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hanse.agreement import Call
from hanse.cli import connection, dataset, main, output
from rich.console import Console

from tests.client.support import Asked, connector

PROGRESS = {"state": "digesting", "done": 1234, "files": 10000}
ROW = {"name": "parts", "rows": 1, "files": [f"/data/{number}.parquet" for number in range(10_000)]}


def test_a_person_sees_how_many_files_are_done(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    looked: list[Asked] = []

    def slow(_: Asked) -> Any:
        ends = time.monotonic() + 60
        while len(looked) < 3 and time.monotonic() < ends:  # until the bar has been drawn with the first answer
            time.sleep(0.01)
        return ROW

    def look(asked: Asked) -> Any:
        looked.append(asked)
        return PROGRESS

    monkeypatch.setattr(output, "_LOOK_SECONDS", 0.05)
    monkeypatch.setattr(output, "console", lambda *, err=False: Console(stderr=err, force_terminal=err, width=120))
    routes = {("POST", "/datasets"): slow, ("GET", "/registrations/parts"): look}
    with connector(routes) as served, pytest.raises(SystemExit):
        main(["--url", served.url, "--token", "t", "dataset", "add", "parts", "/data"])
    told = capfd.readouterr()
    assert "parts: digesting" in told.err
    assert "1234/10000" in told.err
    assert "/data/4.parquet" in told.out
    assert "and 9,995 more" in told.out
    assert "/data/5.parquet" not in told.out


def test_interrupted_it_stops_the_registration_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    routes = {("DELETE", "/registrations/parts"): None, ("GET", "/registrations/parts"): {"state": "stopped"}}
    with connector(routes) as served:
        monkeypatch.setattr(connection.GLOBAL_OPTIONS, "url", served.url)
        monkeypatch.setattr(connection.GLOBAL_OPTIONS, "token", "t")
        space = connection.space()
        done = space.api.do

        def interrupted(call: Call) -> Any:
            if call.method == "POST":
                raise KeyboardInterrupt
            return done(call)

        monkeypatch.setattr(space.api, "do", interrupted)
        monkeypatch.setattr(dataset, "space", lambda: space)
        with pytest.raises(KeyboardInterrupt):
            dataset._register("parts", "/datasets", {})
        assert served.calls() == ["DELETE /registrations/parts", "GET /registrations/parts"]
    assert "the registration of parts is stopped" in capfd.readouterr().err
