"""Where an image differs from what the decoder expects, and which lesions that finds."""
