"""Arrow Flight and Flight SQL: a second transport over the one governed stream (decision 59).

    client ──gRPC──> listener, grpc_call ──Flight──> rpc_methods ──> flight_queries ──> admission
                                                          └──> catalogue_client ──> catalogue_process

`listener` holds grpcio's server and its limits, `grpc_call` one call, `framing` its messages, `rpc_methods` the
methods, `flight_queries` who may read what. None of them loads Arrow: a batch leaves as the bytes that it is. Catalogue
tables and clients' parameters need Arrow, so a process that can be limited and killed makes and reads them.
"""
