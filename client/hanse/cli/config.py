"""`hanse login`, `hanse logout`, `hanse config`: where the connector is, and the token for it."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from hanse.cli import connection
from hanse.cli.output import AsJson, print_one, say
from hanse.errors import BadInput, HanseError, NotFound, Unauthenticated


def register(app: typer.Typer) -> None:
    app.command()(login)
    app.command()(logout)
    app.command()(config)


def login(
    url: Annotated[str, typer.Argument(help="The management listener, e.g. http://127.0.0.1:8081.")] = "",
    token: Annotated[str, typer.Option(help="A token instead of a login at a provider; asked for or piped in.")] = "",
    provider: Annotated[str, typer.Option(help="The provider's name, where the connector has several.")] = "",
    device: Annotated[bool, typer.Option("--device", help="Log in with the browser of another device.")] = False,
) -> None:
    """Log in at your organisation's provider, or keep a token, for all later commands.

    [bold]hanse login https://hanse.north.example[/bold] opens the browser, or shows a code where there is none.

    [bold]hanse login --device[/bold] shows a code for the browser of another device.

    [bold]hanse login --token hanse_pat_...[/bold] keeps a token after trying it.
    """
    from hanse.config import find_connection

    to = find_connection(url=url or connection.GLOBAL_OPTIONS.url, token="").url
    given = token or connection.GLOBAL_OPTIONS.token
    if given and (provider or device):
        raise BadInput("expected a token, or a provider's login (--provider, --device), got both; leave one out")
    if given or not (provider or device or sys.stdin.isatty()):
        _keep_token(to, given or sys.stdin.readline().strip())
    elif chosen := _choose_provider(to, provider, needed=bool(provider or device)):
        _log_in(to, chosen, device=device)
    else:
        _keep_token(to, typer.prompt("Token", hide_input=True))


def _keep_token(url: str, token: str) -> None:
    """Try a token and keep it."""
    from hanse.config import keep

    _say_login(url, token)
    say(f"kept in {keep(url, token)}")


def _say_login(url: str, token: str) -> None:
    from hanse.client import Space

    try:
        me = Space(url, token).me()
    except NotFound:
        raise NotFound(
            f"{url} is no management listener: that answers at a port of its own (HANSE_MANAGEMENT_PORT, 8081 where "
            "it is not set), not at the one for other participants, nor at the catalogue's"
        ) from None
    say(
        f"logged in at {url} as {me.get('caller', '?')} for {me.get('name', '?')}; "
        f"this token may: {', '.join(me.get('scopes', []))}"
    )


def _choose_provider(url: str, name: str, *, needed: bool) -> dict[str, str] | None:
    """Return the provider of this name, or the only one; None where the connector has none and none is needed."""
    from hanse.client import Space

    try:
        offered = Space(url, "").api.get("/oauth/providers")
    except (NotFound, Unauthenticated):  # an older connector
        offered = []
    by_name = {str(one["name"]): {key: str(value) for key, value in one.items()} for one in offered}
    if not by_name and not needed:
        return None
    if not by_name:
        raise NotFound(
            f"{url} has no login from the command line: its operator adds `cli_client_id` to the sign-on file; "
            "until then, use a token (`hanse login --token`)",
            code="no_provider",
        )
    if name not in by_name and (name or len(by_name) > 1):
        got = f"got {name!r}" if name else "got none"
        raise BadInput(f"expected --provider among {', '.join(sorted(by_name))}, {got}", code="which_provider")
    return by_name[name] if name else next(iter(by_name.values()))


def _log_in(url: str, chosen: dict[str, str], *, device: bool) -> None:
    """Log in at a provider, exchange its ID token at the connector, and keep what renews it."""
    from hanse._transport.person import exchange_id_token
    from hanse._transport.provider import ProviderConnection, can_open_browser
    from hanse.client import Space
    from hanse.config import keep_login

    provider = ProviderConnection(chosen["issuer"], chosen["client_id"], chosen["scopes"])
    if device or not can_open_browser(os.environ, sys.platform):
        tokens = provider.log_in_on_device(lambda address, code: say(f"open {address} on any device; code: {code}"))
    else:
        tokens = provider.log_in_with_browser(
            lambda address: say(f"log in with your browser; if none opens:\n{address}")
        )
    made = exchange_id_token(tokens.id_token, Space(url, "").api.exchange)
    _say_login(url, made["token"])
    about = {"provider": chosen["name"], "issuer": chosen["issuer"], "client_id": chosen["client_id"]}
    file = keep_login(url, about, made | {"refresh_token": tokens.refresh_token})
    until = "renews itself" if tokens.refresh_token else "ends soon: the provider gave no refresh token"
    say(f"kept in {file}; it {until}")


def logout() -> None:
    """Forget what `hanse login` kept. A login at a provider is revoked there and ends at the connector.

    [bold]hanse logout[/bold]
    """
    from hanse._transport.login_file import login_file, read_login
    from hanse.config import forget

    saved = read_login(login_file())
    try:
        _revoke(saved)
    finally:
        say(f"removed {login_file()}" if forget() else "nothing was kept")


def _revoke(saved: dict[str, str]) -> None:
    """End a provider's login at the connector and at the provider. What cannot be reached is named, and ends later."""
    from hanse._transport.provider import ProviderConnection
    from hanse.client import Space

    if not saved.get("issuer"):
        return
    try:
        Space(saved["url"], "").api.revoke(saved["token"])
        if saved.get("refresh_token") and not ProviderConnection(saved["issuer"], saved["client_id"]).revoke(
            saved["refresh_token"]
        ):
            say(f"{saved['issuer']} has not revoked the login; end it there")
    except HanseError as error:
        say(f"could not revoke the login: {error}; end it at {saved['issuer']}")


def config(as_json: AsJson = False) -> None:
    """Where commands go, and where that was said. Never shows the token."""
    from hanse._transport.login_file import login_file

    to = connection.where()
    row = {"url": to.url, "token": "set" if to.token else "missing", "token_from": to.source, "file": str(login_file())}
    print_one(row, {name: name for name in row}, as_json=as_json)
