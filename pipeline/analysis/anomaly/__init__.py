"""Where an image is not what the decoder expects, and what of that could be found."""
