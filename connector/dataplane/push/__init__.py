"""Push transfers: sending to a consumer's address, and receiving from providers."""
