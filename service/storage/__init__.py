"""Which blobs are still needed, and the collection of those that are not."""
