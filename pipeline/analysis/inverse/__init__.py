"""Inverse problems y = A x + noise under a decoder prior: reconstruction and restoration."""
