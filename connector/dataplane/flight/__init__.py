"""Arrow Flight and Flight SQL: a second transport over the one governed stream.

    client ──gRPC──> server.py (a process of its own) ──link.py──> desk.py (the connector) ──> stream.py

The process that faces the network speaks gRPC, Arrow and Flight SQL and holds nothing: no key but its certificate's, no
data, no policy. Each call becomes one question on a socket of its own; the desk answers it over the same `Reads` as
HTTP does. Whatever a stranger sends is parsed there, where it can be limited and killed; see decision 0009.
"""
