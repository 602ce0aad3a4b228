"""Issuer of credentials to members (Decentralized Claims 1.0): requests, signing, delivery and status lists."""
