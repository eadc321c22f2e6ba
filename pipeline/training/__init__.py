"""Training: the objective, the loop, the rate controller, checkpoints."""
