"""The load of the benches: a gRPC client on plain sockets that leaves the machine to the server it measures.

`run` (in `benchmarks.load.run`) starts it in a process of its own; `http2` is the protocol, `hpack` its headers,
`generator` the loop.
"""
