"""From sentences to activations: batches, the pass through a model, and its cache on disk."""
