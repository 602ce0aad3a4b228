"""Addresses of sinks, in the protocol's names and in those of Eclipse EDC."""

from __future__ import annotations

import pytest

from connector.dataplane.push.target import Target
from connector.errors import Invalid

URL = "https://sink.example/in"


@pytest.mark.parametrize(
    ("properties", "expected"),
    [
        ({}, Target(URL)),
        ({"authorization": "t", "authType": "bearer"}, Target(URL, "Bearer t")),
        ({"authorization": "Basic eA=="}, Target(URL, "Basic eA==")),
        ({"authKey": "Authorization", "authCode": "t"}, Target(URL, "t")),
        ({"authCode": "t"}, Target(URL, "t")),
        ({"authKey": "X-Api-Key", "authCode": "t"}, Target(URL, "t", header="x-api-key")),
        ({"authorization": "a", "authKey": "X-Api-Key", "authCode": "b"}, Target(URL, "a")),
        ({"maxBytes": "10", "method": "post"}, Target(URL, most=10)),
    ],
    ids=str,
)
def test_a_sink_is_read_in_both_namings(properties: dict[str, str], expected: Target) -> None:
    assert Target.of(URL, properties) == expected


@pytest.mark.parametrize(
    "properties",
    [
        {"authKey": "Host", "authCode": "t"},
        {"authKey": "X-A: b\r\nX-B", "authCode": "t"},
        {"authKey": "Authorization", "authCode": "t\r\nX-B: c"},
        {"authorization": "Bearer \u00fc"},
        {"method": "DELETE"},
        {"path": "in"},
        {"queryParams": "a=b"},
    ],
    ids=str,
)
def test_a_sink_that_cannot_be_called_as_it_says_is_refused(properties: dict[str, str]) -> None:
    with pytest.raises(Invalid, match="expected"):
        Target.of(URL, properties)


def test_the_job_of_a_push_is_read_within_limits() -> None:
    assert Target.of("https://a.example", {"hanse-job": "run-1"}).job == "run-1"
    assert len(Target.of("https://a.example", {"hanse-job": "x" * 1_000}).job) == 250
    for hostile in ("a\x1b[2J", "a\u202eb", "a\nb\x00"):
        with pytest.raises(Invalid, match="without control characters"):
            Target.of("https://a.example", {"hanse-job": hostile})
