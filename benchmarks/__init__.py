"""Benchmarks of `baton bench NAME`: speed against limits that are measured in the same run.

Each file is one bench with `run(...) -> Report`; `benchmarks.report` is what they share. They use the product as its
users do (`baton serve`, gRPC, files), and nothing of the product imports them but the command line.
"""
