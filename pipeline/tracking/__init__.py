"""MLflow: runs, the model registry, the decoder that it serves."""
