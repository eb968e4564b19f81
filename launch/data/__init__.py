"""From Arrow shards to packed batches: reader, order, mixture, loader."""
