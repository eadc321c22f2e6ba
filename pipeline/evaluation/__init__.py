"""What a trained model is worth: metrics, intervals and figures."""
