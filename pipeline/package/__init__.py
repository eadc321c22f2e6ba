"""The format in which a trained decoder travels: its writer and its reader.

    metadata.json                 what it is, in MONAI-bundle fashion; SHA-256 of every file below
    decoder.pt2                   latent -> image, torch.export with a dynamic batch: torch alone
    encoder.pt2                   image -> mean and log-variance of the posterior
    kernel_network.pt2            latent -> blur kernel, where the likelihood has one
    residual.pt2                  image -> standard deviation of each pixel, where a law was fitted
    prior.pt2                     standard normal noise -> latents of samples, where one was fitted
    decoder.safetensors, …        the same networks' weights, and likelihood.safetensors
    decoder.onnx, …               the same graphs for programs without torch, if asked for

`load` reads metadata.json and the .safetensors only, which hold no code.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
