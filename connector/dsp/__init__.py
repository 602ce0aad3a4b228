"""The Dataspace Protocol 2025-1 (HTTPS binding), provider and consumer.

How the parts are wired (all arguments by keyword; `connector/app.py` does this):

    peer         = Peer(wire=net, mint=identity.mint)
    sender       = Sender(store=store, peer=peer, send_delay=, retry_first=, retry_cap=, retry_deadline=)
    negotiations = Negotiations(store=, sender=, peer=, participant=our id, base=our dsp base, facts_of=)
    transfers    = Transfers(store=, sender=, peer=, participant=, base=, facts_of=, data_plane=, formats=)
    agreements   = Agreements(store=, sender=, transfers=, participant=)
    catalog      = Catalog(store=, participant=, base=, facts_of=, formats=)
    webhooks     = Webhooks(store=, sender=, net=)                 # connector.management.events
    public.include_router(routes.router(...)); await sender.start(); ...; await sender.stop()

`facts_of(participant id) -> policies.evaluate.Facts` is async. `data_plane` is a `transfer.DataPlane`. `formats` names
the distributions on offer. `mint(audience) -> Authorization header` and `authenticate(header) -> Principal` are
`identity.service.Identity`'s.
"""
