"""The HTTP/2 server behind Arrow Flight, on the `h2` library."""
