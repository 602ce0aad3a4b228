"""Fetches what a credential points to (status lists, schemas) and queries, within limits, as errors of authentication.

The addresses come from others. So details about names, addresses and ports go to our own log only: what cannot be
called from here, and what does not answer, look alike. Redirects are not followed.
"""

from __future__ import annotations

from collections.abc import Mapping

from connector.errors import AddressRefused, NameUnknown, PeerFailed, PeerUnreachable, Unavailable, Unproven
from connector.infra.net.http_client import HttpClient, Reply


async def call(
    net: HttpClient,
    method: str,
    url: str,
    *,
    what: str,
    max_bytes: int,
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
) -> bytes:
    """The body of a successful answer. `what` names it in errors.

    Raises: Unproven if the address may not be called, refuses or sends too much; Unavailable if a later attempt may
    succeed.
    """
    reply = await _reply(net, method, url, what=what, max_bytes=max_bytes, headers=headers, body=body)
    if reply.status >= 500 or reply.status == 429:
        raise Unavailable(
            f"{what} cannot be fetched now; try again in a moment", private=f"{url} answered {reply.status}"
        )
    if not 200 <= reply.status < 300:
        raise Unproven(f"{what} cannot be fetched from here", private=f"{url} answered {reply.status}")
    return reply.body


async def _reply(
    net: HttpClient,
    method: str,
    url: str,
    *,
    what: str,
    max_bytes: int,
    headers: Mapping[str, str] | None,
    body: bytes | None,
) -> Reply:
    try:
        return await net.call(method, url, headers=headers, body=body, max_bytes=max_bytes)
    except (AddressRefused, NameUnknown) as error:
        raise Unproven(f"{what} cannot be fetched from here", private=error.message) from error
    except (PeerUnreachable, Unavailable) as error:
        raise Unavailable(f"{what} cannot be fetched now; try again in a moment", private=error.message) from error
    except (PeerFailed, ValueError) as error:
        raise Unproven(f"{what} cannot be read", private=str(error)) from error
