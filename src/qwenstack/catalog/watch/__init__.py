"""`watch`: what hubs publish, kept as dated snapshots, and what changed between two of them."""
