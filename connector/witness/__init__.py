"""Witnesses of audit logs: members and the catalogue cosign each other's checkpoints (C2SP tlog-witness).

Knows notes, keys, proofs and how they travel, and must not know records, policies or a database: connector and
catalogue pass their store in. See decision 105.
"""
