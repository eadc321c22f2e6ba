"""Reconstruction terms: their protocol (`base`), their registry, and the laws of residuals."""
