"""Where exports are published, one file a kind of place."""
