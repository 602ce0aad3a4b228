"""The append-only audit log: a Merkle tree of records under a signed head, so that every change is detected.

Knows records and hashes, and must not know the protocol, policies or callers. The offline verifier is in the client and
shares no code with this package, so that two implementations of the format check each other.
"""
