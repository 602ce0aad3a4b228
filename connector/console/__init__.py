"""Web console of the connector: pages for the data owner, the model builder, the operator and the auditor.

Server-rendered; pages use the same services as the management API and work without JavaScript.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import APIRouter

from connector.audit.cosigning import Cosigning
from connector.audit.log import AuditLog
from connector.audit.signed_note import Signer
from connector.console import agreements as agreement_pages
from connector.console import audit, datasets, login, offer_editor, overview, query, system
from connector.console import credentials as credential_pages
from connector.console import negotiations as negotiation_pages
from connector.console import offers as offer_pages
from connector.console import search as search_pages
from connector.console import tokens as token_pages
from connector.console.page import PageRenderer
from connector.console.view import snippets
from connector.dataplane.push.push_receiver import PushReceiver
from connector.datasets.registry import Registry
from connector.datasets.uploads import Uploads
from connector.dsp.agreements import AgreementService
from connector.dsp.negotiation import NegotiationService
from connector.dsp.participants import ParticipantDirectory
from connector.dsp.transfer import TransferService
from connector.federation.coordinator import Coordinator
from connector.federation.tables import Holdings
from connector.identity.member_register import MemberRegister
from connector.management.sign_on.auth import Tokens
from connector.management.sign_on.people import SignOn
from connector.management.sign_on.personal_tokens import PersonalTokens
from connector.offers.offers import Offers
from connector.offers.preview import OwnersView
from connector.settings import Settings
from connector.store import Store
from connector.wallet.credential_requests import CredentialRequests
from policies.evaluation.evaluate import Facts


def router(
    *,
    settings: Settings,
    participant: str,
    version: str,
    tokens: Tokens,
    personal: PersonalTokens,
    sign_on: SignOn,
    trust: MemberRegister,
    store: Store,
    registry: Registry,
    uploads: Uploads,
    offers: Offers,
    owners_view: OwnersView,
    facts_of: Callable[[str], Awaitable[Facts]],
    negotiations: NegotiationService,
    transfers: TransferService,
    receiving: PushReceiver,
    agreements: AgreementService,
    partners: ParticipantDirectory,
    search: search_pages.Search,
    coordinator: Coordinator,
    holdings: Holdings,
    credential_requests: CredentialRequests,
    log: AuditLog,
    signer: Signer,
    cosigning: Cosigning,
) -> APIRouter:
    """Return the router of all pages, mounted at the root of the management listener."""
    pages = PageRenderer(
        tokens, name=settings.name, title=settings.title, participant=participant, version=version,
        members=trust.members, waiting=lambda: store.read(negotiation_pages.count_waiting),
    )  # fmt: skip
    routes = APIRouter(include_in_schema=False)
    for one in (
        login.router(pages, sign_on, secure=_is_secure(settings)),
        login.back_channel(sign_on),
        overview.router(pages, store=store, log=log, settings=settings),
        datasets.router(pages, registry=registry, uploads=uploads, store=store, settings=settings),
        offer_editor.router(pages, offers=offers, registry=registry, owners_view=owners_view, facts_of=facts_of),
        offer_pages.router(pages, offers=offers, registry=registry, owners_view=owners_view),
        negotiation_pages.router(
            pages, negotiations=negotiations, transfers=transfers, receiving=receiving, store=store
        ),
        snippets.router(pages, holdings=holdings, store=store),
        agreement_pages.router(pages, agreements=agreements, store=store),
        search_pages.router(pages, search=search, partners=partners, negotiations=negotiations),
        query.router(pages, coordinator=coordinator, holdings=holdings),
        credential_pages.router(pages, credential_requests),
        audit.router(pages, log=log, signer=signer, cosigning=cosigning),
        token_pages.router(pages, tokens=tokens, personal=personal),
        system.router(pages, settings=settings),
    ):
        routes.include_router(one)
    return routes


def _is_secure(settings: Settings) -> bool:
    """Return whether browsers reach the console over https, so that cookies need it."""
    return (settings.management_url or settings.root_url).startswith("https:")
