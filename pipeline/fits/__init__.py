"""What is fitted to a trained run: the law of its residuals and the prior of its samples."""
