"""From records to batches: read, decoded, augmented, and shared among replicas."""
