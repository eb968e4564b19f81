"""The offline pipeline: documents in, tokenized Arrow shards with a manifest out."""
