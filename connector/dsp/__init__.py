"""Dataspace Protocol 2025-1 (HTTPS binding), as provider and as consumer.

- `states`, `auto_decisions`: both state machines, and the automatic answers, as tables; `messages`, `jsonld`: the wire.
- `process`: the steps that both machines share; `negotiation`, `transfer`: what their messages mean.
- `agreements`, `agreement_terms`, `duty_upkeep`: agreements after they are signed, their terms, and their duties.
- `catalog`: what we offer; `participants`, `protocol_client`: calls to other connectors; `routes`: calls from them.
- `process_limits`: how much another party may begin.

`connector.services` builds the parts. The provider's row of a transfer is STARTED only once the consumer has
acknowledged the start. Until then `pending` is TransferStartMessage, and a ticket of the row's `generation` is valid.
"""
