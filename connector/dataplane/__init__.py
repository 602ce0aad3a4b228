"""How bytes leave: one governed stream, and the transports that frame it."""
