"""HTTP of the client: management API, bulk streams, cancellation."""
