"""The operator's sign-on file: providers that people log in at, issuers whose tokens workloads exchange, services."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from joserfc.errors import JoseError
from joserfc.jwk import KeySet, OctKey
from pydantic import BaseModel, ConfigDict, Field, model_validator

from connector.errors import Invalid
from connector.identity.openid.login import Provider
from connector.identity.openid.provider_file import check_providers, read_secret_file
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
    read = read_secret_file(
        file, SignOnFile, expected="expected YAML with `providers`, `workloads` and `services`, lists"
    )
    check_providers(file, read.providers)
    for provider in read.providers:
        if unknown := sorted(set(provider.roles.values()) - set(ROLES)):
            raise Invalid(f"{file}: expected roles among {', '.join(ROLES)}, got {', '.join(unknown)}")
    _check_scopes(file, read)
    if len({one.name for one in read.services}) != len(read.services):
        raise Invalid(f"{file}: expected a name for each service, got the same twice")
    return read


def _check_scopes(file: Path, read: SignOnFile) -> None:
    by_subject = [scopes for issuer in read.workloads for scopes in issuer.subjects.values()]
    given = {scope for scopes in (*by_subject, *(one.scopes for one in read.services)) for scope in scopes}
    if unknown := sorted(given - set(WORKLOAD_SCOPES)):
        expected = ", ".join(WORKLOAD_SCOPES)
        raise Invalid(f"{file}: expected scopes among {expected} for workloads, got {', '.join(unknown)}")
