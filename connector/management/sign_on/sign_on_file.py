"""The operator's sign-on file: providers that people log in at, and issuers whose tokens workloads exchange."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from connector.errors import BadInput
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


class SignOnFile(BaseModel):
    """The file as a whole. A missing part is empty."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    providers: tuple[Provider, ...] = ()
    workloads: tuple[WorkloadIssuer, ...] = ()


def read_sign_on_file(file: Path | None) -> SignOnFile:
    """Read the operator's file; None: an empty one.

    Raises: BadInput for a malformed file, or one that other users can read.
    """
    if file is None:
        return SignOnFile()
    try:
        if file.stat().st_mode & 0o077:
            raise BadInput(f"{file} holds secrets and can be read by other users; run `chmod 600 {file}`")
        read = SignOnFile.model_validate(_read_parts(file))
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        raise BadInput(f"{file}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except (OSError, yaml.YAMLError, ValueError, TypeError) as error:
        expected = "expected YAML with `providers` and `workloads`, lists"
        raise BadInput(f"{file}: {expected}; {type(error).__name__}") from None
    _check_providers(file, read.providers)
    _check_workloads(file, read.workloads)
    return read


def _read_parts(file: Path) -> dict[str, object]:
    said = yaml.safe_load(file.read_text(encoding="utf-8"))
    if not isinstance(said, dict) or set(said) - set(SignOnFile.model_fields):
        raise ValueError
    return said


def _check_providers(file: Path, providers: Sequence[Provider]) -> None:
    names = [provider.name for provider in providers]
    if len(set(names)) != len(names):
        raise BadInput(f"{file}: expected a name for each provider, got the same twice")
    at_command_line = [provider.issuer for provider in providers if provider.cli_client_id]
    if len(set(at_command_line)) != len(at_command_line):
        raise BadInput(f"{file}: expected `cli_client_id` once for an issuer, got it twice")
    for provider in providers:
        if unknown := sorted(set(provider.roles.values()) - set(ROLES)):
            raise BadInput(f"{file}: expected roles among {', '.join(ROLES)}, got {', '.join(unknown)}")
        for scopes in (provider.scopes, provider.cli_scopes):
            if "openid" not in scopes.split():
                raise BadInput(f"{file}: expected the scope openid for {provider.name}, got {scopes!r}")


def _check_workloads(file: Path, issuers: Sequence[WorkloadIssuer]) -> None:
    given = {scope for issuer in issuers for scopes in issuer.subjects.values() for scope in scopes}
    if unknown := sorted(given - set(WORKLOAD_SCOPES)):
        expected = ", ".join(WORKLOAD_SCOPES)
        raise BadInput(f"{file}: expected scopes among {expected} for workloads, got {', '.join(unknown)}")
