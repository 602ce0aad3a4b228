"""The operator's sign-on file: providers that people log in at, issuers whose tokens workloads exchange, services."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import yaml
from joserfc.errors import JoseError
from joserfc.jwk import KeySet, OctKey, import_key
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from connector.errors import Invalid
from connector.identity.openid.issuer_client import name_algorithm
from connector.identity.openid.login import Provider
from connector.setting_types import NAME, Address

ROLES: Mapping[str, tuple[str, ...]] = {
    "reader": ("read", "consume"),
    "owner": ("read", "owner"),
    "approver": ("read", "approve"),
    "auditor": ("audit",),
    "operator": ("admin",),
}
WORKLOAD_SCOPES = ("read", "consume", "metrics")


class WorkloadIssuer(BaseModel):
    """An issuer of the operator's file whose tokens workloads exchange."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=f"^{NAME}$", description="Short name, after a workload's subject in the log.")
    issuer: str = Field(min_length=1, max_length=200, description="`iss` as its tokens write it.")
    audience: str = Field(min_length=1, description="`aud` that a token must have.")
    jwks_url: Address = Field("", description="Address of its keys; empty: by discovery from the issuer.")
    subjects: dict[str, tuple[str, ...]] = Field(min_length=1, description="Scopes by subject; * stands for any text.")
    job_claim: str = Field("", description="Claim with the job's id; a slash leads into an object.")


class ServiceClient(BaseModel):
    """A service of the operator's file, which authenticates with a key of its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=f"^{NAME}$", description="Its client_id: `iss` and `sub` of its assertions.")
    audience: str = Field("", max_length=200, description="`aud` of its assertions; empty: the token endpoint's URL.")
    jwks: dict[str, Any] | None = Field(None, description="Its public keys, a JWK set.")
    jwks_url: Address = Field("", description="Address of its public keys, in place of `jwks`.")
    scopes: tuple[str, ...] = Field(min_length=1, description="Scopes of its tokens.")

    @model_validator(mode="after")
    def check_keys(self) -> Self:
        """Check that there are keys from one place, and only public ones. Raises: ValueError."""
        if (self.jwks is None) == (not self.jwks_url):
            raise ValueError("expected `jwks` or `jwks_url`")
        if self.jwks is not None and not _is_public(self.jwks):
            raise ValueError("expected public keys with different `kid` in `jwks`, none of them secret")
        return self


def _is_public(jwks: Mapping[str, Any]) -> bool:
    try:
        keys = KeySet.import_key_set(jwks).keys  # type: ignore[arg-type]  # joserfc checks the form
    except (JoseError, ValueError, TypeError, LookupError, AttributeError):
        return False
    secret = any(isinstance(key, OctKey) or key.is_private for key in keys)
    return bool(keys) and not secret and len({key.kid for key in keys}) == len(jwks["keys"])


class SignOnFile(BaseModel):
    """The file as a whole. A missing part is empty."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    providers: tuple[Provider, ...] = ()
    workloads: tuple[WorkloadIssuer, ...] = ()
    services: tuple[ServiceClient, ...] = ()


def read_sign_on_file(file: Path | None) -> SignOnFile:
    """Read the operator's file; None: an empty one.

    Raises: Invalid for a malformed file, or one that other users can read.
    """
    if file is None:
        return SignOnFile()
    try:
        if file.stat().st_mode & 0o077:
            raise Invalid(f"{file} holds secrets and can be read by other users; run `chmod 600 {file}`")
        read = SignOnFile.model_validate(_read_parts(file))
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        raise Invalid(f"{file}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except (OSError, yaml.YAMLError, ValueError, TypeError) as error:
        expected = "expected YAML with `providers`, `workloads` and `services`, lists"
        raise Invalid(f"{file}: {expected}; {type(error).__name__}") from None
    _check_providers(file, read.providers)
    _check_scopes(file, read)
    if len({one.name for one in read.services}) != len(read.services):
        raise Invalid(f"{file}: expected a name for each service, got the same twice")
    return read


def _read_parts(file: Path) -> dict[str, object]:
    said = yaml.safe_load(file.read_text(encoding="utf-8"))
    if not isinstance(said, dict) or set(said) - set(SignOnFile.model_fields):
        raise ValueError
    return said


def _check_providers(file: Path, providers: Sequence[Provider]) -> None:
    names = [provider.name for provider in providers]
    if len(set(names)) != len(names):
        raise Invalid(f"{file}: expected a name for each provider, got the same twice")
    at_command_line = [provider.issuer for provider in providers if provider.cli_client_id]
    if len(set(at_command_line)) != len(at_command_line):
        raise Invalid(f"{file}: expected `cli_client_id` once for an issuer, got it twice")
    for provider in providers:
        if unknown := sorted(set(provider.roles.values()) - set(ROLES)):
            raise Invalid(f"{file}: expected roles among {', '.join(ROLES)}, got {', '.join(unknown)}")
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


def _check_scopes(file: Path, read: SignOnFile) -> None:
    by_subject = [scopes for issuer in read.workloads for scopes in issuer.subjects.values()]
    given = {scope for scopes in (*by_subject, *(one.scopes for one in read.services)) for scope in scopes}
    if unknown := sorted(given - set(WORKLOAD_SCOPES)):
        expected = ", ".join(WORKLOAD_SCOPES)
        raise Invalid(f"{file}: expected scopes among {expected} for workloads, got {', '.join(unknown)}")
