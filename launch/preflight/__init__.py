"""What would fail later in a run on a cluster, found before it starts."""
