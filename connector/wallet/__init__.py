"""Our own credentials: stores them, and presents them to verifiers (Decentralized Claims 1.0, sections 5 and 6)."""
