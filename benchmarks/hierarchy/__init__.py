"""Parts of `baton bench embedding`: tables on disk, id streams, stacks of tiers, and other stores to compare with."""
