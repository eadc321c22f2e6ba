"""From a prepared store to batches."""
