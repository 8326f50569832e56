"""From neurons to a changed model: ablations, their controls, and exported checkpoints."""
