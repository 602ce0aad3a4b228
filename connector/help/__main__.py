"""The command `hanse docs`, an entry point: serves the help site on this machine."""

from __future__ import annotations

import socket
import webbrowser
from typing import Annotated

import typer

from connector.help import site


def commands(
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0 takes a free one.", min=0, max=65_535)] = 0,
    browser: Annotated[bool, typer.Option(help="Open the start page in a browser.")] = True,
) -> None:
    """Serve the help site on this machine until Ctrl-C. Example: `hanse docs --no-browser --port 8800`."""
    if not (site.FOLDER / "index.html").is_file():
        typer.echo(site.MISSING.strip(), err=True)
        raise typer.Exit(1)
    import uvicorn
    from fastapi import FastAPI

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.include_router(site.router())
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError as error:
            typer.echo(f"expected a free port, got {port} ({error.strerror}); name another with --port", err=True)
            raise typer.Exit(1) from None
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/help/"
        typer.echo(f"{address}  (Ctrl-C ends it)")
        if browser:
            webbrowser.open(address)
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])


if __name__ == "__main__":
    typer.run(commands)
