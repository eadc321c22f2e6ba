"""Furniture of both packages: files, errors, progress, MLflow, pages."""
