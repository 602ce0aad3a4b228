"""Credentials of participants (Decentralized Claims 1.0): access tokens, presentations, credentials, status lists."""
