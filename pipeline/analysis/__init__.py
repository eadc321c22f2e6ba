"""What a trained decoder is for: analyses that know its package and nothing of its training."""
