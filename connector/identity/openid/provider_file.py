"""Reads a file of the operator with secrets, and checks the OpenID providers in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import yaml
from joserfc.errors import JoseError
from joserfc.jwk import import_key
from pydantic import BaseModel, ValidationError

from connector.errors import Invalid
from connector.identity.openid.issuer_client import name_algorithm
from connector.identity.openid.login import Provider

_File = TypeVar("_File", bound=BaseModel)


def read_secret_file(file: Path, model: type[_File], *, expected: str) -> _File:
    """Read YAML with the members of `model`; `expected` says what it should be.

    Raises: Invalid for a malformed file, or one that other users can read.
    """
    try:
        if file.stat().st_mode & 0o077:
            raise Invalid(f"{file} holds secrets and can be read by other users; run `chmod 600 {file}`")
        said = yaml.safe_load(file.read_text(encoding="utf-8"))
        if not isinstance(said, dict):
            raise TypeError
        if unknown := sorted(map(str, set(said) - set(model.model_fields))):
            raise Invalid(f"{file}: {expected}; got {', '.join(unknown)}")
        return model.model_validate(said)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        raise Invalid(f"{file}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except (OSError, yaml.YAMLError, ValueError, TypeError) as error:
        raise Invalid(f"{file}: {expected}; {type(error).__name__}") from None


def check_providers(file: Path, providers: Sequence[Provider]) -> None:
    """Check what providers must be beside their form. Raises: Invalid."""
    names = [provider.name for provider in providers]
    if len(set(names)) != len(names):
        raise Invalid(f"{file}: expected a name for each provider, got the same twice")
    at_command_line = [provider.issuer for provider in providers if provider.cli_client_id]
    if len(set(at_command_line)) != len(at_command_line):
        raise Invalid(f"{file}: expected `cli_client_id` once for an issuer, got it twice")
    for provider in providers:
        _check_client(file, provider)
        for scopes in (provider.scopes, provider.cli_scopes):
            if "openid" not in scopes.split():
                raise Invalid(f"{file}: expected the scope openid for {provider.name}, got {scopes!r}")


def _check_client(file: Path, provider: Provider) -> None:
    if provider.client_key is None:
        return
    if provider.client_secret:
        raise Invalid(f"{file}: expected a client_secret or a client_key for {provider.name}, got both")
    try:
        name_algorithm(import_key(dict(provider.client_key)))
    except (Invalid, JoseError, ValueError, TypeError, LookupError):
        kinds = "a private JWK (RSA, P-256, P-384, P-521 or Ed25519)"
        raise Invalid(f"{file}: expected {kinds} as client_key of {provider.name}") from None
