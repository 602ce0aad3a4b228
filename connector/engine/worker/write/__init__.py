"""How a worker writes an answer: Arrow streams, file formats, noise, scrubbed nulls."""
