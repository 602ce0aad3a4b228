"""Status lists: what is signed, where credentials stand in them, and when copies end."""

from __future__ import annotations

from typing import Any

import pytest

from catalogue.issuer.credential_signer import encode_bits
from catalogue.store import CatalogueTransaction
from catalogue.store.issuances import LIST_BITS, IssuanceQueries
from catalogue.store.tables import StatusList
from connector.identity.credentials.status_list import inflate
from tests.catalogue.conftest import ROOT, Catalogue
from tests.catalogue.issuer.holder import MEMBERSHIP, OPERATOR, Holder, deliver
from tests.catalogue.issuer.test_issuing import admitted, claims_of, patch

BOTH = (f"{MEMBERSHIP}-vc11", f"{MEMBERSHIP}-vc20")


async def entries(catalogue: Catalogue, holder: Holder) -> list[dict[str, Any]]:
    """The status entries of a credential in each profile."""
    await holder.request(catalogue, *BOTH)
    await deliver(catalogue)
    claims = [claims_of(one) for one in holder.credentials]
    return [one.get("vc", one)["credentialStatus"] for one in claims]


async def test_a_list_is_signed_whole_and_names_its_end(catalogue: Catalogue, holder: Holder) -> None:
    await admitted(catalogue, holder)
    for entry, kind in zip(await entries(catalogue, holder), ("StatusList2021", "BitstringStatusList"), strict=True):
        assert (entry["type"], entry["statusPurpose"]) == (f"{kind}Entry", "suspension")
        assert entry["id"] == f"{entry['statusListCredential']}#{entry['statusListIndex']}"
        url = entry["statusListCredential"]
        answer = await catalogue.http.get(url)
        assert answer.headers["cache-control"] == "public, max-age=30"
        claims = claims_of(answer.text)
        vc = claims.get("vc", claims)
        assert (vc["id"], vc["issuer"], vc["type"]) == (url, OPERATOR, ["VerifiableCredential", f"{kind}Credential"])
        assert vc["credentialSubject"]["statusPurpose"] == "suspension"
        assert len(inflate(vc["credentialSubject"]["encodedList"])) * 8 == LIST_BITS
        assert claims["exp"] == int(catalogue.clock.now + 300)
        assert ("validUntil" in vc) == (kind == "BitstringStatusList")
        again = await catalogue.http.get(url, headers={"if-none-match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        unsigned = (await catalogue.http.get(url, headers={"accept": "application/json"})).json()
        assert unsigned == vc


async def test_a_list_is_signed_again_when_a_bit_changed_and_when_it_ages(catalogue: Catalogue, holder: Holder) -> None:
    await admitted(catalogue, holder)
    url = f"{ROOT}/issuer/status/statuslist2021/1"
    index = int(claims_of(holder.credentials[0])["vc"]["credentialStatus"]["statusListIndex"])
    tags = [(await catalogue.http.get(url)).headers["etag"]]
    catalogue.clock.advance(29)
    assert (await catalogue.http.get(url)).headers["etag"] == tags[0]
    catalogue.clock.advance(2)
    tags.append((await catalogue.http.get(url)).headers["etag"])
    await patch(catalogue, status="suspended")
    changed = await catalogue.http.get(url)
    tags.append(changed.headers["etag"])
    assert len(set(tags)) == 3
    bits = inflate(claims_of(changed.text)["vc"]["credentialSubject"]["encodedList"])
    assert [place for place in range(LIST_BITS) if bits[place // 8] & 0x80 >> place % 8] == [index]


@pytest.mark.parametrize(
    "path", ["statuslist2021/2", "bitstring/0", "bitstring/-1", "bitstring/99999999999999999999", "other/1"]
)
async def test_there_is_no_other_list(catalogue: Catalogue, holder: Holder, path: str) -> None:
    await admitted(catalogue, holder)
    assert (await catalogue.http.get(f"/issuer/status/{path}")).status_code == 404


async def test_a_list_that_is_half_full_is_followed_by_another(catalogue: Catalogue, holder: Holder) -> None:
    await admitted(catalogue, holder)

    def fill(tx: CatalogueTransaction) -> None:
        row = tx.issuances.find_list("statuslist2021", 1)
        assert row is not None
        row.used = LIST_BITS // 2

    await catalogue.parts.store.write(fill)
    old, _ = await entries(catalogue, holder)
    assert old["statusListCredential"] == f"{ROOT}/issuer/status/statuslist2021/2"
    await patch(catalogue, status="suspended")
    for number in (1, 2):
        claims = claims_of((await catalogue.http.get(f"/issuer/status/statuslist2021/{number}")).text)
        assert sum(one.bit_count() for one in inflate(claims["vc"]["credentialSubject"]["encodedList"])) == 1


async def test_a_place_is_taken_once(catalogue: Catalogue, holder: Holder) -> None:
    await admitted(catalogue, holder)
    taken = int(claims_of(holder.credentials[0])["vc"]["credentialStatus"]["statusListIndex"])

    def work(tx: CatalogueTransaction) -> tuple[tuple[int, int], StatusList | None]:
        drawn = iter((taken, taken, (taken + 1) % LIST_BITS))
        found = IssuanceQueries(tx.session, draw=lambda _: next(drawn)).take_place("statuslist2021")
        return found, tx.issuances.find_list("statuslist2021", 1)

    place, row = await catalogue.parts.store.write(work)
    assert place == (1, (taken + 1) % LIST_BITS)
    assert row is not None
    assert row.used == 2


def test_bits_are_counted_from_the_most_significant_one() -> None:
    bits = inflate(encode_bits([0, 9, LIST_BITS - 1]))
    assert (bits[0], bits[1], bits[-1], sum(bits)) == (0x80, 0x40, 1, 0xC1)


async def test_places_are_chosen_by_chance(catalogue: Catalogue) -> None:
    places = await catalogue.parts.store.write(lambda tx: [tx.issuances.take_place("bitstring")[1] for _ in range(20)])
    assert places != sorted(places)
