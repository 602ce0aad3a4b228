"""What a line of our own log shows, and what it never does."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
from connector.telemetry import logger, set_up_logging

log = logger("early")  # as modules do it, when they are imported
set_up_logging(level="warning", as_json={as_json})
log.info("below the level")
try:
    held = "SECRET-LOCAL"
    raise ValueError("boom")
except ValueError as error:
    log.error("it failed", ticket="SECRET-TICKET", exc_info=error)
"""


def told(*, as_json: bool) -> str:
    """What a program of its own writes to standard error: loggers are set up once per process."""
    program = [sys.executable, "-c", PROGRAM.format(as_json=as_json)]
    return subprocess.run(program, capture_output=True, text=True, check=True).stderr


def test_a_logger_made_before_the_set_up_keeps_to_it() -> None:
    for as_json in (True, False):
        text = told(as_json=as_json)
        assert "below the level" not in text
        assert "SECRET" not in text.replace('held = "SECRET-LOCAL"', "")
        assert "it failed" in text
        assert "ValueError: boom" in text
        assert "early" in text


UNWRITTEN = """
import logging, os, sys
from connector.telemetry import logger, set_up_logging

set_up_logging(level="warning", as_json=False)
{spoil}
for tell in (logger("store").error, logger("store").warning, logging.getLogger("uvicorn").error):
    tell("nobody reads this")
print("goes on")
"""


@pytest.mark.parametrize(
    "spoil",
    [
        "os.dup2(os.open('/dev/full', os.O_WRONLY), 2)",
        "r, w = os.pipe(); os.close(r); os.dup2(w, 2)",
        "sys.stderr.close()",
    ],
    ids=["a full disk", "a reader that is gone", "closed"],
)
def test_a_line_that_cannot_be_written_is_no_error(spoil: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", UNWRITTEN.format(spoil=spoil)], capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stdout) == (0, "goes on\n")
