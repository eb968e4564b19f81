"""The shard format, its writer and its verifier."""
