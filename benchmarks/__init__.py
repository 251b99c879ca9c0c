"""Speed, against limits measured in the same run: what `baton bench NAME` runs.

Each file is one bench with `run(...) -> Report`; `benchmarks.report` is what they share. They use the product as its
users do (`baton serve`, gRPC, files), and nothing of the product imports them but the command line.
"""
