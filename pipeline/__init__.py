"""Train and evaluate blur-minimising variational autoencoders on prepared stores.

The face of the package is listed in `__init__.pyi`. Each name is loaded when it is first used, so
that `import pipeline` does not wait for torch.

    >>> import torch
    >>> from pipeline import LikelihoodConfig, build_term
    >>> term = build_term(LikelihoodConfig(term="gaussian", scale=0.1), (1, 8, 8))
    >>> image, reconstruction = torch.zeros(2, 1, 8, 8), torch.full((2, 1, 8, 8), 0.1)
    >>> [round(nats, 2) for nats in term(image, reconstruction).value.tolist()]
    [-56.55, -56.55]
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
