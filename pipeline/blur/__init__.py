"""The paper's mathematics as pure functions (Bredell et al. 2023, arXiv 2304.05939)."""
