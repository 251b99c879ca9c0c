"""Load generator of the benches: a gRPC client on plain sockets that leaves most of the machine to the measured server.

`run` (in `benchmarks.load.run`) starts it in a process of its own; `http2` is the protocol, `hpack` its headers,
`generator` the loop.
"""
