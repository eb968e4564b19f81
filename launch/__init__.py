"""The trainer: Arrow shards in, DeepSpeed ZeRO-3 checkpoints and an event log out."""
