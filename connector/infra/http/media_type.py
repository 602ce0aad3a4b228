"""Reads the media type of a Content-Type header of others (RFC 9110, section 8.3.1)."""

from __future__ import annotations

import re

ARROW_STREAM = "application/vnd.apache.arrow.stream"
OCTETS = "application/octet-stream"
_TYPE = re.compile(r"[a-z0-9!#$&^_.+-]{1,60}/[a-z0-9!#$&^_.+-]{1,60}", re.ASCII)


def read_media_type(header: str) -> str:
    """The media type without its parameters, in lower case; empty where the header has none that is readable."""
    text = header.partition(";")[0].strip().lower()
    return text if _TYPE.fullmatch(text) else ""
