"""Analyses with a trained decoder: they use its package, and nothing of its training."""
