"""Raw images -> a prepared store of slices that a training can read.

The face of the package is listed in `__init__.pyi`. Each name is loaded when it is first used.

    >>> from data_prep import PrepareConfig
    >>> PrepareConfig().plane
    'axial'
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
