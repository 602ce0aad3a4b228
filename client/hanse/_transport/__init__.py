"""HTTP of the client: the management API, bulk streams, cancellation."""
