"""What `baton bench embedding` measures: tables on disk, id streams, stacks of tiers, and other stores beside them."""
