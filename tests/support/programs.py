"""The programs that the console shows to whoever wants to read, and running them as they stand there."""

from __future__ import annotations

import contextlib
import io
import re
from html import unescape

from tests.support.processes import Client


def shown(port: int, token: str, transfer: str) -> dict[str, str]:
    """What the page of a started transfer shows, by title."""
    console = Client(port, token=token)
    page = console.call("GET", f"/transfers/{transfer}/connect").decode()
    console.close()
    assert token not in page
    sections = re.findall(r'<h2 id="way-\d+">(.*?)</h2>.*?<pre tabindex="0">(.*?)</pre>', page, re.DOTALL)
    return {unescape(title): unescape(code) for title, code in sections}


def install_line(port: int, token: str, transfer: str) -> str:
    """The command on the same page that installs the client."""
    console = Client(port, token=token)
    page = console.call("GET", f"/transfers/{transfer}/connect").decode()
    console.close()
    found = re.search(r"<pre tabindex=\"0\" data-install>(.*?)</pre>", page)
    assert found is not None
    return unescape(found[1])


def printed(code: str) -> str:
    """What a program prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, "program", "exec"), {"__name__": "__main__"})
    return out.getvalue()
