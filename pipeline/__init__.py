"""Train and evaluate blur-minimising variational autoencoders on prepared stores."""
