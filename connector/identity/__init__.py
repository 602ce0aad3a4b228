"""Identity of participants: authenticates callers and signs our own tokens. The entry point is `identity_service`."""
