"""The one reader of addresses: what it refuses, and that every place where an address comes in asks it."""

from __future__ import annotations

import random
import re
import string
from urllib.parse import urlsplit

import pytest

from catalogue.crawl.visit import _same_origin
from catalogue.members.members import _is_callable
from connector.dsp import messages
from connector.dsp.protocol_client import ProtocolClient
from connector.errors import AddressRefused, MessageInvalid, Unproven
from connector.identity.did import address_of
from connector.infra.net.http_client import AddressGuard, HttpClient, split_url
from connector.setting_types import address
from connector.urls import BASE_MAX, check_endpoint, read_base, read_url
from tests.support.minted import minting

HOST = "https://198.51.100.7"
GOOD = [
    "https://host.example", "https://host.example/", "https://host.example:8443/dsp/2025-1", "http://127.0.0.1:8080",
    "https://[::1]:8080/dsp", "https://[2001:db8::1]", "https://xn--bcher-kva.example/", "https://my_service:9000/x",
    "HTTPS://Host.Example./A", "https://host/a%20b", "https://host/~me/@x:y;z=1,2+3$4&5'6*(7)!", "https://localhost",
    "https://a.b-c.d", "https://1host.example", "https://host/[x]",
]  # fmt: skip
BLANKS = ["\n", "\r", "\r\n", "\t", " ", "\0", "\x0b", "\x1b", "\x7f", "\x85", "\xa0", "\u1680", "\u2003", "\u200b",
          "\u200e", "\u2028", "\u2029", "\u202e", "\u2060", "\u3000", "\ufeff", "\U000e0001", "\ud800"]  # fmt: skip
BAD = {
    "nothing": "", "no scheme": "host.example", "no host": "https://", "no host but a path": "https:///x",
    "no host but a port": "https://:443/", "a relative one": "/dsp", "no slashes": "https:host.example",
    "one slash": "https:/host.example", "another scheme": "ftp://host.example", "a file": "file:///etc/passwd",
    "a script": "javascript:alert(1)", "a scheme alone": "//host.example",
    "a login": "https://me:pw@host.example", "a name": "https://me@host.example", "an empty login": "https://@host.example",
    "a login with a backslash": "https://host.example\\@other.example",
    "a fragment": "https://host.example/#x", "an empty fragment": "https://host.example/#",
    "a letter of no ASCII in the host": "https://h\xf6st.example", "a letter of no ASCII in the path": "https://host/\xe4",
    "wide letters": "https://\uff48ost.example", "a wide dot": "https://host\u3002example",
    "a backslash": "https://host.example\\x", "a quote": 'https://host/"x', "brackets": "https://host/<x>",
    "braces": "https://host/{x}", "a bar": "https://host/a|b", "a caret": "https://host/^", "a grave accent": "https://host/`",
    "half an escape": "https://host/%2", "no escape": "https://host/100%", "an escape in the host": "https://ho%73t/",
    "port 0": "https://host:0/", "too large a port": "https://host:65536/", "a long port": "https://host:443443443/",
    "a port that is a word": "https://host:port/", "an empty port": "https://host:/", "a signed port": "https://host:+443/",
    "two ports": "https://host:1:2/", "a port with a zero before": "https://host:0443/",
    "half an IPv6 address": "https://[::1/", "an IPv6 address without brackets": "https://::1/",
    "an IPv6 address with a zone": "https://[fe80::1%25eth0]/", "brackets around a name": "https://[host]/",
    "a future address": "https://[v1.x]/", "an empty label": "https://a..example/", "a dot before": "https://.example/",
    "a dot alone": "https://./", "a label too long": f"https://{'a' * 64}.example/",
    "a host too long": f"https://{'a.' * 127}ab/",
    "a hyphen before": "https://-a.example/", "a hyphen behind": "https://a-.example/", "a star": "https://*.example/",
    "a short IPv4 address": "https://127.1/", "a number": "https://2130706433/", "a hexadecimal number": "https://0x7f000001/",
    "octal digits": "https://0177.0.0.1/", "five parts": "https://1.2.3.4.5/", "too large a part": "https://1.2.3.256/",
    "a comma in the host": "https://a,b/", "too long": f"https://host/{'x' * 16_000}",
}  # fmt: skip
for mark in BLANKS:
    BAD[f"{mark!a} in the path"] = f"https://host.example/d{mark}sp"
    BAD[f"{mark!a} in the host"] = f"https://host{mark}.example/dsp"
    BAD[f"{mark!a} at the end"] = f"https://host.example/dsp{mark}"
    BAD[f"{mark!a} at the beginning"] = f"{mark}https://host.example/dsp"
    BAD[f"{mark!a} in the scheme"] = f"htt{mark}ps://host.example/dsp"


@pytest.mark.parametrize("url", GOOD)
def test_an_address_that_can_be_called_is_read(url: str) -> None:
    assert read_url(url) == read_base(url) == urlsplit(url)
    check_endpoint(url)


@pytest.mark.parametrize("url", BAD.values(), ids=BAD.keys())
def test_an_address_that_cannot_be_called_is_refused_with_what_was_expected_and_what_came(url: str) -> None:
    with pytest.raises(ValueError, match=r"^expected .*, got ") as caught:
        read_url(url)
    said = str(caught.value)
    assert (said.isascii(), said.isprintable(), len(said) < 600, "pw" in said) == (True, True, True, False)


def test_an_address_with_paths_to_be_added_has_no_query_and_is_short() -> None:
    for text in ("https://host/?x=1", "https://host?", "https://host/" + "x" * BASE_MAX):
        read_url(text)
        with pytest.raises(ValueError, match="expected"):
            read_base(text)


@pytest.mark.parametrize("text", ["grpc+tls://host:8815", "broker-1:9092,broker-2:9092", "s3://bucket/key", "urn:x:y"])
def test_an_endpoint_of_another_transport_is_taken(text: str) -> None:
    check_endpoint(text)


@pytest.mark.parametrize("text", [f"grpc+tls://host{mark}:8815" for mark in BLANKS] + [" https://host", "HTTP:host"])
def test_an_endpoint_with_a_character_of_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        check_endpoint(text)


async def came_in(url: str) -> dict[str, bool]:
    """Which places take this address."""
    net = HttpClient(AddressGuard(allow=["0.0.0.0/0", "::/0"]), timeout=60, max_bytes=1_000)
    peer = ProtocolClient(wire=net, mint=minting())
    wire = {"@type": "DataAddress", "endpointType": "https://w3id.org/idsa/v4.1/HTTP"}
    tried = {
        "call": lambda: split_url(url),
        "setting": lambda: address(url),
        "endpoint": lambda: messages.read_data_address({**wire, "endpoint": url}),
        "property": lambda: messages.read_data_address(
            {**wire, "endpointProperties": [{"name": "http", "value": url}]}
        ),
    }
    taken = {"member": _is_callable(url), "visit": _same_origin(url, HOST)}
    for place, take in tried.items():
        try:
            take()
        except (ValueError, AddressRefused, MessageInvalid):
            taken[place] = False
        else:
            taken[place] = True
    for place, check in {"callback": peer.check_theirs, "webhook": peer.check, "sink": peer.check_sink}.items():
        try:
            await check(url)
        except MessageInvalid:
            taken[place] = False
        else:
            taken[place] = True
    await net.close()
    return taken


@pytest.mark.parametrize("mark", [*BLANKS, "\\", "\xe4", "<", "#", "%", "@"], ids=ascii)
async def test_every_place_where_an_address_comes_in_refuses_it(mark: str) -> None:
    assert set((await came_in(f"{HOST}/dsp")).values()) == {True}
    for url in (f"{HOST}{mark}", f"{HOST}{mark}/dsp", f"{mark}{HOST}/dsp", f"{HOST}/d{mark}sp"):
        if (mark == "@" and "/d" in url) or (mark in "#%" and url.startswith(mark)):
            continue  # a path may have it; an endpoint of another transport may begin so
        taken = await came_in(url)
        assert not any(taken.values()), (url, taken)


@pytest.mark.parametrize("mark", [*BLANKS[:-1], "%00", "%0D%0A", "%20", "%09", "%C2%A0", "%22", "%3C"], ids=ascii)
def test_a_did_whose_host_is_none_has_no_address(mark: str) -> None:
    for did in (f"did:web:ho{mark}st.example", f"did:web:host.example{mark}", f"did:web:host.example%3A80{mark}:a"):
        with pytest.raises(Unproven):
            address_of(did)


def test_what_is_taken_of_random_texts_is_one_line_of_a_plain_url() -> None:
    chance = random.Random(31)
    pieces = ["https", "http", "://", ":", "/", "//", "host", "example", ".", "..", "@", "?", "#", "%", "%41",
              "[", "]", "::1", "8080", "0", "99999", "-", "_", "xn--a", "127.0.0.1",
              "\xe4", *BLANKS, *string.punctuation]  # fmt: skip
    plain = re.compile(r"https?://(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(:[1-9][0-9]{0,4})?([/?][!-~]*)?", re.IGNORECASE)
    taken, refused = 0, list[str]()
    for _ in range(20_000):
        start = chance.choice(["https://host.example", "http://127.0.0.1:80/", "https://", ""])
        text = start + "".join(chance.choice(pieces) for _ in range(chance.randrange(6)))
        try:
            parts = read_url(text)
        except ValueError as error:
            refused.append(str(error))
            continue
        taken += 1
        assert plain.fullmatch(text), text
        assert (bool(parts.hostname), parts.fragment, parts.username) == (True, "", None)
        assert parts.geturl().lower().rstrip("?") == text.lower().rstrip("?"), "nothing of it was dropped"
    assert taken > 1_000
    assert all(one.isascii() and one.isprintable() for one in refused)
