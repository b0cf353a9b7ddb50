"""Input pipeline: records are read, decoded, augmented, batched and divided among the workers."""
