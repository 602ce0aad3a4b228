"""The outbox: delivers committed protocol messages, webhooks and pushes, at least once."""
