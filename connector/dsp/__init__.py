"""The Dataspace Protocol 2025-1 (HTTPS binding), provider and consumer.

How the parts are wired (all arguments by keyword; `connector/app.py` does this):

    sender       = Sender(store=, send_delay=, retry_first=, retry_cap=, retry_deadline=, metrics=)
    peer         = Peer(wire=net, mint=identity.mint)
    parts        = exchange.Parts(store=, sender=, peer=, participant=our id, base=our dsp base, facts_of=)
    negotiations = Negotiations(parts, limits=)
    transfers    = Transfers(parts, negotiations=, data_plane=, formats=FORMATS, limits=)
    agreements   = Agreements(store=, sender=, negotiations=, transfers=, stop=grants.stop)
    partners     = Partners(peer=, member=trust.called)
    webhooks     = Webhooks(store=, sender=, peer=, wire=net)
    catalog      = Catalog(store=, participant=, base=, facts_of=, formats=)
    public.include_router(routes.router(negotiations=, transfers=, catalog=, sender=, authenticate=, body_max_bytes=))
    public.include_router(routes.version_router())
    api.include_router(management.negotiations.router(negotiations=, partners=, store=, tokens=))
    api.include_router(management.transfers.router(transfers=, store=, tokens=))
    api.include_router(management.agreements.router(agreements=, tokens=, contract=))
    api.include_router(management.events.router(feed=Feed(store.bus), webhooks=, tokens=, note=))
    await sender.start() once all is built and the store is migrated; await sender.stop() before the store closes

`facts_of(participant id) -> policies.evaluation.evaluate.Facts` is async (`connector.usage.fact_collector.Known.of`).
`data_plane` is a `transfer.DataPlane`: `address(transfer, agreement) -> messages.DataAddress`, `stop(transfer_id,
reason)`, `push(transfer, data_address)`, all async. `authenticate(header) -> Principal` and `mint(audience) -> header`
are `identity.service.Identity`'s. The provider's row of a transfer has `state` STARTED only once the consumer has
acknowledged the start: until then `pending` is TransferStartMessage, and a ticket of the row's `generation` is good.
"""
