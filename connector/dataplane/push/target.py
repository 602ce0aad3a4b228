"""The address to which a consumer wants data pushed, in the protocol's names and in those of Eclipse EDC. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from connector.acting import JOB_MAX
from connector.errors import Invalid, check_harmless
from connector.infra.net.http_client import fits_header

JOB_PROPERTY = "hanse-job"  # of a data address: the training job that the push is for, as the consumer declares it
_HEADER = re.compile(r"authorization|x-[a-z0-9-]{1,62}", re.ASCII | re.IGNORECASE)
_NOT_SUPPORTED = ("path", "queryParams")  # EDC adds these to its baseUrl


@dataclass(frozen=True, slots=True)
class Target:
    """Address of a consumer, its authorization, and the most bytes that it takes (0: not stated).

    `header`: the name of the header that carries the authorization. `job`: the training job, for the log.
    """

    endpoint: str
    authorization: str = ""
    most: int = 0
    header: str = "authorization"
    job: str = ""

    @classmethod
    def of(cls, endpoint: str, properties: Mapping[str, str]) -> Self:
        """Return the target in a data address.

        The protocol's names are `authorization` and `authType`. EDC's HTTP sinks have `authKey`, the name of a header,
        and `authCode`, its value (EDC, data-plane-http, HttpDataAddress).

        Raises: Invalid for an authorization that no header can carry, and for a sink with `path`, `queryParams` or a
        `method` other than POST, which pushes do not support.
        """
        most = properties.get("maxBytes", "")
        said = most.isascii() and most.isdigit() and len(most) < 20
        header, shown = _read_authorization(properties)
        if not fits_header(shown):
            raise Invalid("expected an authorization of printable ASCII, which a header can carry, got another")
        _check_supported(properties)
        job = properties.get(JOB_PROPERTY, "")
        check_harmless(job=job)
        return cls(endpoint, shown, int(most) if said else 0, header, job[:JOB_MAX])


def _read_authorization(properties: Mapping[str, str]) -> tuple[str, str]:
    """The name and the value of the header."""
    shown = properties.get("authorization", "")
    if not shown and properties.get("authCode"):
        header = properties.get("authKey", "") or "authorization"
        if not _HEADER.fullmatch(header):
            raise Invalid(f"expected Authorization or a header X-... as authKey, got {header[:60]!r}")
        return header.lower(), properties["authCode"]
    bearer = properties.get("authType", "").lower() == "bearer" and shown and " " not in shown
    return "authorization", f"Bearer {shown}" if bearer else shown


def _check_supported(properties: Mapping[str, str]) -> None:
    method = properties.get("method", "") or "POST"
    if method.upper() != "POST":
        raise Invalid(f"expected a sink that takes POST, got the method {method[:20]!r}; leave out `method`")
    for name in _NOT_SUPPORTED:
        if properties.get(name):
            raise Invalid(f"expected the whole address of the sink in baseUrl, got `{name}` too; put it into baseUrl")
