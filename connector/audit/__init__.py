"""The append-only log of everything that happened, in a form that nobody can change quietly.

Knows records and hashes; nothing of the protocol, of policies, or of who calls. Its offline verifier lives in the
client and shares no code with what stands here, so that two readings of the format check each other.
"""
