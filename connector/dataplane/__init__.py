"""Data plane: governed streams of one provider, and the transports that carry them."""
