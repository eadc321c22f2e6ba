"""What the header of a NIfTI, MGH or Analyze file says about its volume."""

from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.freesurfer.mghformat import MGHHeader
from nibabel.spm2analyze import Spm2AnalyzeHeader

from data_prep.common.errors import VolumeError
from data_prep.flags import ASSUMED_ORIENTATION, FORMS_DISAGREE, UNITS, flag

# Voxels beyond these are a broken header (often metres or micrometres, and nothing says so). The
# finest volume of a whole human brain, BigBrain, has 0.02 mm.
SMALLEST_VOXEL_MM, LARGEST_VOXEL_MM = 0.01, 20.0

# Units of length that a NIfTI header can declare, and their mm; 0 declares none, which means mm.
LENGTHS = {1: ("metre", 1000.0), 2: ("mm", 1.0), 3: ("micron", 0.001)}
ANALYZE_LENGTHS = {b"mm": ("mm", 1.0), b"cm": ("cm", 10.0), b"um": ("micron", 0.001)}

# Where the axes of a volume run to does not matter: an array without a place in space.
ANYWHERE = "anywhere"

# Enough of a file to hold any of the headers, and to see what else it may be.
HEADER_BYTES = 540

# An MGH header, as far as it stands before the voxels.
MGH_BYTES = 284

# Where an MGH header says whether it gives an orientation, two bytes.
GOOD_RAS = 28

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
        the shortest edge of a voxel apart (or the second cannot be read); UNITS where lengths are
        in another unit than mm; ASSUMED_ORIENTATION where the affine is not of the header.
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


def parse_header(
    start: bytes,
    name: str,
    *,
    flat_allowed: bool = False,
    assume_orientation: str = "",
    pair: bool = False,
) -> Header:
    """The header in `start`, the first HEADER_BYTES of a file's content (fewer where it has fewer).

    Args:
        start: the bytes.
        name: of the file, for messages.
        flat_allowed: accept a single slice, of two axes or with an axis of one voxel.
        assume_orientation: where the axes run to, such as "LAS", if the header does not say; ""
            refuses it, and ANYWHERE takes any affine.
        pair: the voxels lie in a file of their own (.hdr and .img).

    Raises:
        VolumeError: html, dicom, wrong_format, wrong_extension, not_nifti, truncated, header,
            dimensions, no_orientation.
    """
    refuse_other_kinds(start, name)
    kind = _kind(start, pair)
    if kind is None:
        raise VolumeError("not_nifti", f"{name} does not begin as a NIfTI or MGH file does")
    if len(start) < _length(kind):
        raise VolumeError("truncated", f"{name} ends within its header")
    if (kind is MGHHeader) != name.lower().endswith((".mgh", ".mgz")):
        true, ending = ("an MGH", ".mgz") if kind is MGHHeader else ("a NIfTI", ".nii.gz")
        raise VolumeError("wrong_extension", f"{name} is {true} file: name it {ending}")
    try:
        header = kind(start[: _length(kind)])
        dtype, shape = header.get_data_dtype(), tuple(int(n) for n in header.get_data_shape())
        offset = int(header.get_data_offset())
        slope, intercept = header.get_slope_inter()
        affine = np.asarray(header.get_best_affine(), np.float64)
        zooms = np.abs(np.asarray(header.get_zooms()[:3], np.float64))
    except Exception as error:  # nibabel raises many kinds for one damaged header
        raise VolumeError("header", f"{name} has a damaged header: {error}") from None
    if kind in (nib.Nifti1Header, nib.Nifti2Header):
        apart = bytes(header["magic"]).startswith(b"ni")
        if apart and not pair:
            raise VolumeError(
                "wrong_extension",
                f"{name} is the header of a pair, its voxels are elsewhere: name it .hdr, beside "
                "the .img file",
            )
        if pair and not apart:
            raise VolumeError(
                "wrong_extension", f"{name} is a whole NIfTI file, header and voxels: name it .nii"
            )
        if not pair and offset < _length(kind) + 4:
            raise VolumeError("header", f"{name} has voxels that would begin inside its header")
    if dtype.kind not in "iuf":
        raise VolumeError("header", f"{name} has voxels of type {dtype}: not plain numbers")
    if flat_allowed and len(shape) == 2:
        shape, zooms = (*shape, 1), np.append(zooms, 1.0)[:3]
    least = 1 if flat_allowed else 2
    if len(shape) < 3 or min(shape[:3]) < least or any(n != 1 for n in shape[3:]):
        raise VolumeError(
            "dimensions",
            f"{name} has the shape {'x'.join(map(str, shape))}: one 3-D volume is needed",
        )
    first = (shape[0], shape[1], shape[2])
    unit, millimetres = _unit(header)
    flags = [FORMS_DISAGREE] if _forms_disagree(header, first, 1e-2 / millimetres) else []
    if assume_orientation != ANYWHERE and not _oriented(header, start):
        affine = _assumed(assume_orientation, zooms, first, name)
        flags.append(flag(
            ASSUMED_ORIENTATION,
            f"its header gives no orientation: {assume_orientation} is assumed"
            " (prepare.assume_orientation), so left and right are as good as that",
        ))  # fmt: skip
    if millimetres != 1:
        affine[:3] *= millimetres
        flags.append(flag(UNITS, f"its header gives lengths in {unit}"))
    _check_affine(affine, name, unit, anywhere=assume_orientation == ANYWHERE)
    slope, intercept = (1.0 if slope is None else slope), (intercept or 0.0)
    return Header(first, dtype, offset, float(slope), float(intercept), affine, tuple(flags))


def _check_affine(affine: np.ndarray, name: str, unit: str, *, anywhere: bool) -> None:
    # The determinant of the directions alone: that of voxels of micrometres is small, too.
    voxel = nib.affines.voxel_sizes(affine)
    sound = np.isfinite(affine).all() and voxel.min() > 0
    if not sound or abs(np.linalg.det(affine[:3, :3] / voxel)) < 1e-6:
        raise VolumeError("header", f"{name} has an orientation matrix without an inverse")
    odd = voxel.max() if voxel.max() > LARGEST_VOXEL_MM else voxel.min()
    if voxel.max() > LARGEST_VOXEL_MM or (odd < SMALLEST_VOXEL_MM and not anywhere):
        declared = f"its header gives lengths in {unit}" if unit else "its header names no unit"
        raise VolumeError(
            "header",
            f"{name} has voxels of {odd:g} mm ({declared}): correct its affine, or its xyzt_units",
        )


def _unit(header: Any) -> tuple[str, float]:
    """The unit of length that a header declares, "" for none, and its mm."""
    if isinstance(header, nib.Nifti1Header):
        return LENGTHS.get(int(header["xyzt_units"]) & 7, ("", 1.0))
    if isinstance(header, MGHHeader):
        return "mm", 1.0
    return ANALYZE_LENGTHS.get(bytes(header["vox_units"]).strip(b"\0 ").lower(), ("", 1.0))


def _oriented(header: Any, start: bytes) -> bool:
    """Whether a header says where its axes run to."""
    if isinstance(header, MGHHeader):
        return start[GOOD_RAS : GOOD_RAS + 2] != b"\0\0"
    if isinstance(header, nib.Nifti1Header):
        return int(header["sform_code"]) > 0 or int(header["qform_code"]) > 0
    return False


def _assumed(codes: str, zooms: np.ndarray, shape: tuple[int, ...], name: str) -> np.ndarray:
    """The affine (4, 4) of axes that run to `codes`, 0 mm in the middle of the volume."""
    if not codes:
        raise VolumeError(
            "no_orientation",
            f"{name} gives no orientation (sform and qform codes of 0, or Analyze), so left and "
            "right are unknown: convert it again from its source, or say where its axes run to "
            "with prepare.assume_orientation (anomaly: --assume_orientation), such as RAS or LAS",
        )
    affine = np.eye(4)
    turn = nib.orientations.axcodes2ornt(tuple(codes))
    affine[:3, :3] = 0
    for axis, (world, sign) in enumerate(turn):
        affine[int(world), axis] = sign * zooms[axis]
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def _length(kind: Any) -> int:
    """Bytes of a header of this kind."""
    return MGH_BYTES if kind is MGHHeader else int(kind.sizeof_hdr)


def _kind(start: bytes, pair: bool) -> Any:
    """The class that reads this header, as its first four bytes have it.

    Of a pair without NIfTI's magic, Analyze: as nibabel does, with the scaling of SPM.
    """
    if start[:4] == b"\0\0\0\1":
        return MGHHeader
    for kind in (nib.Nifti1Header, nib.Nifti2Header):
        if start[:4] in (kind.sizeof_hdr.to_bytes(4, order) for order in ("little", "big")):
            analyze = pair and kind is nib.Nifti1Header and start[344:347] not in (b"ni1", b"n+1")
            return Spm2AnalyzeHeader if analyze else kind
    return None


def _forms_disagree(
    header: nib.Nifti1Header, shape: tuple[int, int, int], tolerance: float
) -> bool:
    """Whether sform and qform, both given, disagree by more than a voxel at a corner.

    tolerance: in the header's unit. The quaternion is float32: equal affines differ by thousandths
    of a millimetre.
    """
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
    edge = nib.affines.voxel_sizes(header.get_sform()).min()
    return not distance <= edge + tolerance
