"""The N4 bias field, by the optional package SimpleITK."""

import importlib.util

import numpy as np

from data_prep.common.errors import InputError


def require_n4() -> None:
    """Raise InputError where the optional package that does N4 is not installed."""
    if importlib.util.find_spec("SimpleITK") is None:
        raise InputError(
            "prepare.n4 needs the package SimpleITK: install the extra 'n4' or set prepare.n4 false"
        )


def n4_corrected(data: np.ndarray, mask: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """The volume divided by its N4 bias field (Tustison 2010, doi 10.1109/TMI.2010.2046908).

    data (X, Y, Z) float32, mask (X, Y, Z) bool, spacing (3,) mm -> (X, Y, Z) float32. The field is
    smooth, so it is fitted on voxels of about 4 mm and evaluated on all.
    """
    require_n4()
    import SimpleITK as sitk

    def image_of(array: np.ndarray) -> "sitk.Image":
        image = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
        image.SetSpacing([float(s) for s in spacing])
        return image

    # N4 works on logarithms: what is not above zero cannot take part.
    whole, inside = image_of(data), image_of((mask & (data > 0)).astype(np.uint8))
    factors = [max(1, min(round(4 / s), n // 8)) for s, n in zip(spacing, data.shape, strict=True)]
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.Execute(sitk.Shrink(whole, factors), sitk.Shrink(inside, factors))
    field = sitk.GetArrayFromImage(sitk.Exp(n4.GetLogBiasFieldAsImage(whole)))
    return (data / np.maximum(field.transpose(2, 1, 0), 1e-3)).astype(np.float32)
