"""ODRL policies on the wire: reading, writing, digests."""
