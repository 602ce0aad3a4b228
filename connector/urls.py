"""Validates URLs before they are stored or called. Pure: does not resolve names.

`urllib.parse.urlsplit` drops line ends, tabs and leading blanks, so a check of its parts does not cover the text that
is stored and sent. Here the text itself is checked first.
"""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import SplitResult, urlsplit

HTTP = ("http", "https")
BASE_MAX = 2_000  # characters of an address to which paths are added
_LONGEST = 16_000  # room for a push endpoint of 8,000 characters with a path added
_SHOWN = 200
_NOT_IN_URLS = re.compile(r'[^!-~]|["<>\\^`{|}]')  # RFC 3986, section 2: neither reserved nor unreserved
_HALF_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")  # a last label that resolvers read as an IPv4 address
_PORT = re.compile(r"[1-9][0-9]{0,4}")
_HTTP_URL = re.compile(r"\s*https?:", re.IGNORECASE)
_CREDENTIALS = re.compile(r"//[^/?#]*@")


def read_url(text: str, *, schemes: tuple[str, ...] = HTTP, query: bool = True, longest: int = _LONGEST) -> SplitResult:
    """The parts of an absolute URL with one of `schemes`. Raises: ValueError.

    In this order: (1) length; (2) printable ASCII of RFC 3986 and whole %XX; (3) scheme and host; (4) no credentials;
    (5) a host name, an IPv4 address or an IPv6 address in brackets; (6) a port from 1 to 65535; (7) no fragment, and no
    query unless `query`.
    """
    if len(text) > longest:  # 1
        raise ValueError(f"expected an address of at most {longest} characters, got {len(text)}; give a shorter one")
    if found := _NOT_IN_URLS.search(text):  # 2
        raise _invalid_url(
            'a URL in ASCII without blanks, line ends, control characters and any of "<>\\^`{|}',
            text,
            f"with {found[0]!a} at position {found.start()}; write it as %XX, or a host in its xn-- form",
        )
    if _HALF_ESCAPE.search(text):
        raise _invalid_url("two hexadecimal digits behind each %", text, "; write a % as %25")
    kinds = "http(s)" if schemes == HTTP else " or ".join(schemes)
    parts = _split(text)
    if parts is None or parts.scheme not in schemes or not parts.netloc:  # 3
        raise _invalid_url(f"an absolute {kinds} URL", text, f"; write it as {schemes[-1]}://host/path")
    if "@" in parts.netloc:  # 4
        raise _invalid_url("a URL without credentials", text, "; leave out what stands before the @")
    host, port = _host_and_port(parts.netloc)
    if not _is_host(host):  # 5
        raise _invalid_url("a host name or an IP address as host", text, f"with the host {host[:_SHOWN]!r}")
    if port is not None and not (_PORT.fullmatch(port) and int(port) < 2**16):  # 6
        raise _invalid_url("a port from 1 to 65535 or none", text, f"with the port {port[:_SHOWN]!r}")
    if "#" in text or ("?" in text and not query):  # 7
        raise _invalid_url(
            f"a URL without {'a fragment' if query else 'query and fragment'}", text, "; end it before that"
        )
    return parts


def read_base(text: str) -> SplitResult:
    """As `read_url`, for an http(s) address to which paths are added: no query, and at most `BASE_MAX` characters."""
    return read_url(text, query=False, longest=BASE_MAX)


def check_endpoint(text: str) -> None:
    """Check the endpoint of a data address of any transport. Raises: ValueError.

    http(s) URLs are checked completely; others (`grpc+tls://host`, `broker:9092`) only for invalid characters.
    """
    if _HTTP_URL.match(text):
        read_url(text)
    elif found := _NOT_IN_URLS.search(text):
        raise _invalid_url(
            "an endpoint in ASCII without blanks, line ends and control characters",
            text,
            f"with {found[0]!a} at position {found.start()}",
        )


def _split(text: str) -> SplitResult | None:
    try:
        return urlsplit(text)
    except ValueError:  # half an IPv6 address
        return None


def _host_and_port(netloc: str) -> tuple[str, str | None]:
    """Host and port as written; without a colon after the host there is no port (None)."""
    host, colon, port = netloc.rpartition(":")
    if not colon or netloc.endswith("]"):
        return netloc, None
    return host, port


def _is_host(host: str) -> bool:
    if host.startswith("["):
        return host.endswith("]") and _is_address(host[1:-1], ipaddress.IPv6Address)
    labels = host.removesuffix(".").split(".")
    if _NUMBER.fullmatch(labels[-1]):
        return _is_address(host, ipaddress.IPv4Address)
    return len(host) <= 254 and all(_LABEL.fullmatch(label) for label in labels)


def _is_address(text: str, kind: type[ipaddress.IPv4Address | ipaddress.IPv6Address]) -> bool:
    try:
        return bool(kind(text)) and "%" not in text  # an IPv6 zone is an interface of this machine
    except ValueError:
        return False


def _invalid_url(expected: str, text: str, why: str) -> ValueError:
    """The error, which shows the text escaped, cut, and without credentials."""
    shown = ascii(_CREDENTIALS.sub("//***@", text)[:_SHOWN])
    return ValueError(f"expected {expected}, got {shown}{why if why.startswith(';') else ' ' + why}")
