"""Wire formats and digests that need neither the engine nor Arrow."""
