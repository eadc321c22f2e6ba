"""Networks: encoder, decoder, the VAE they make, and the kernel network."""
