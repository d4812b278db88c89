"""Raw data in, Domains on disk, training batches out."""
