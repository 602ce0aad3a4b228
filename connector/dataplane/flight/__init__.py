"""Arrow Flight and Flight SQL: a second transport over the one governed stream (decision 38).

    client ──HTTP/2──> http2 ──gRPC──> rpc, framing ──Flight──> service ──> desk ──> stream.py
                                                                   └──> tables ──> maker (a process of its own)

`http2` knows frames, windows and limits (with `outward`, `states`, `helpings` and `messages`), `rpc` and `framing`
what is in them, `service` the methods, `desk` who may read what. None of them loads Arrow: a batch goes out as the
bytes that it is. What has to be made or read with Arrow besides, a catalogue's table or a client's parameters, is
asked of a process that can be limited and killed.
"""
