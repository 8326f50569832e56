"""Models whose MLP neurons can be read, and the proofs that they are."""
