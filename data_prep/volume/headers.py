"""What the header of a NIfTI or MGH file says about its volume."""

from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.freesurfer.mghformat import MGHHeader

from data_prep.errors import VolumeError
from data_prep.flags import FORMS_DISAGREE

# Larger voxels than this are a broken header (often micrometres written as millimetres).
LARGEST_VOXEL_MM = 20.0

# Enough of a file to hold any of the headers, and to see what else it may be.
HEADER_BYTES = 540

# An MGH header, as far as it stands before the voxels.
MGH_BYTES = 284

# First bytes of files that are mistaken for images.
_OTHERS = {
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"GIF8": "a GIF picture",
    b"%PDF": "a PDF document",
    b"PK\x03\x04": "a zip archive",
    b"BZh": "a bzip2 file",
    b"\xfd7zXZ": "an xz file",
    b"NRRD": "an NRRD volume",
    b"\x89HDF": "an HDF5 file (perhaps MINC)",
}


@dataclass(frozen=True)
class Header:
    """Where the voxels are and what they mean.

    shape: of the array in Fortran order; one volume, so its product is X * Y * Z.
    dtype: as stored, byte order included; value = stored * slope + intercept.
    offset: of the first voxel, bytes. affine: (4, 4) float64, voxel indices to RAS mm.
    flags: FORMS_DISAGREE where a NIfTI's two affines place a corner of the volume more than
        the shortest edge of a voxel apart (or the second cannot be read).
    """

    shape: tuple[int, int, int]
    dtype: np.dtype
    offset: int
    slope: float
    intercept: float
    affine: np.ndarray
    flags: tuple[str, ...] = ()

    @property
    def end(self) -> int:
        """Length of the file's content up to the last voxel, bytes."""
        return self.offset + int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


def refuse_other_kinds(start: bytes, name: str) -> None:
    """Raise VolumeError (html, dicom, wrong_format) where `start` begins a file of another kind."""
    if start[:512].lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise VolumeError(
            "html", f"{name} is a web page, not an image: was the download logged in?"
        )
    if start[128:132] == b"DICM":
        raise VolumeError(
            "dicom", f"{name} is a DICOM file, which is not read: convert it with dcm2niix first"
        )
    for magic, kind in _OTHERS.items():
        if start.startswith(magic):
            raise VolumeError("wrong_format", f"{name} is {kind}, not a NIfTI or MGH volume")


def parse_header(start: bytes, name: str, *, flat_allowed: bool = False) -> Header:
    """The header in `start`, the first HEADER_BYTES of a file's content (fewer where it has fewer).

    flat_allowed: accept a single slice, of two axes or with an axis of one voxel.

    Raises:
        VolumeError: html, dicom, wrong_format, wrong_extension, not_nifti, header, dimensions.
    """
    refuse_other_kinds(start, name)
    kind = _kind(start)
    if kind is None:
        raise VolumeError("not_nifti", f"{name} does not begin as a NIfTI or MGH file does")
    if (kind is MGHHeader) != name.endswith((".mgh", ".mgz")):
        true, ending = ("an MGH", ".mgz") if kind is MGHHeader else ("a NIfTI", ".nii.gz")
        raise VolumeError("wrong_extension", f"{name} is {true} file: name it {ending}")
    try:
        header = kind(start[: _length(kind)])
        dtype, shape = header.get_data_dtype(), tuple(int(n) for n in header.get_data_shape())
        offset = int(header.get_data_offset())
        slope, intercept = header.get_slope_inter()
        affine = np.asarray(header.get_best_affine(), np.float64)
        voxel = nib.affines.voxel_sizes(affine)
    except Exception as error:  # nibabel raises many kinds for one damaged header
        raise VolumeError("header", f"{name} has a damaged header: {error}") from None
    if kind is not MGHHeader:
        if bytes(header["magic"]).startswith(b"ni"):
            raise VolumeError("header", f"{name} is the header of a pair: its voxels are elsewhere")
        if offset < _length(kind) + 4:
            raise VolumeError("header", f"{name} has voxels that would begin inside its header")
    if dtype.kind not in "iuf":
        raise VolumeError("header", f"{name} has voxels of type {dtype}: not plain numbers")
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise VolumeError("header", f"{name} has an orientation matrix without an inverse")
    if voxel.max() > LARGEST_VOXEL_MM:
        raise VolumeError("header", f"{name} has voxels of {voxel.max():g} mm")
    if flat_allowed and len(shape) == 2:
        shape = (*shape, 1)
    least = 1 if flat_allowed else 2
    if len(shape) < 3 or min(shape[:3]) < least or any(n != 1 for n in shape[3:]):
        raise VolumeError(
            "dimensions",
            f"{name} has the shape {'x'.join(map(str, shape))}: one 3-D volume is needed",
        )
    first = (shape[0], shape[1], shape[2])
    flags = (FORMS_DISAGREE,) if _forms_disagree(header, first) else ()
    slope, intercept = (1.0 if slope is None else slope), (intercept or 0.0)
    return Header(first, dtype, offset, float(slope), float(intercept), affine, flags)


def _length(kind: Any) -> int:
    """Bytes of a header of this kind."""
    return MGH_BYTES if kind is MGHHeader else int(kind.sizeof_hdr)


def _kind(start: bytes) -> Any:
    """The class that reads this header, as its first four bytes have it."""
    if start[:4] == b"\0\0\0\1" and len(start) >= MGH_BYTES:
        return MGHHeader
    for kind in (nib.Nifti1Header, nib.Nifti2Header):
        orders = (kind.sizeof_hdr.to_bytes(4, "little"), kind.sizeof_hdr.to_bytes(4, "big"))
        if start[:4] in orders:
            return kind
    return None


def _forms_disagree(header: nib.Nifti1Header, shape: tuple[int, int, int]) -> bool:
    """Whether sform and qform, both given, disagree by more than a voxel at a corner."""
    if not isinstance(header, nib.Nifti1Header):
        return False
    if not (header["sform_code"] > 0 and header["qform_code"] > 0):
        return False
    try:
        apart = header.get_sform() - header.get_qform()
    except Exception:  # an impossible quaternion: there is one good affine, and no second opinion
        return True
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape])).reshape(3, -1)
    distance = np.linalg.norm(apart[:3, :3] @ corners + apart[:3, 3:], axis=0).max()
    # The quaternion is float32: equal affines differ by thousandths of a millimetre.
    edge = nib.affines.voxel_sizes(header.get_sform()).min()
    return not distance <= edge + 1e-2


def is_short(start: bytes) -> bool:
    """Whether `start` is the beginning of a header that it does not hold whole."""
    kind = _kind(start.ljust(MGH_BYTES, b"\1")) if len(start) >= 4 else None
    return kind is not None and len(start) < _length(kind)
