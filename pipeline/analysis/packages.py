"""The decoder package of an analysis, and the subjects it may be applied to."""

from typing import Any, Literal

import torch

from pipeline.data.other_people import FILES_CHECKED, WAY_OUT
from pipeline.data.slices import Store, SubjectEntry
from pipeline.data.volumes import differing
from pipeline.decoder_package import DecoderPackage, load
from pipeline.errors import InputError
from pipeline.files import find_folder, is_address
from pipeline.losses.law import GaussianLaw

Choice = Literal["best", "fitted", "term"]


def open_package(source: str, device: str = "cpu") -> DecoderPackage:
    """A decoder package by name under WORK/packages, by path, or by its address in MLflow.

    Raises:
        InputError: there is none, or it is damaged.

    Example:
        >>> package = open_package("demo")
        >>> package.decode(torch.zeros(1, package.latent_size)).shape
        torch.Size([1, 1, 32, 32])
    """
    return load(source if is_address(source) else find_folder(source, "packages"), device)


def open_prior(source: str, law: Choice = "best", device: str = "cpu") -> DecoderPackage:
    """A package with a Gaussian law of its residuals.

    Args:
        source: as for `open_package`.
        law: "best" is the fitted one where the package has it, else that of its term.
        device: where the decoder runs.

    Raises:
        InputError: there is no such package, or the law is not Gaussian.
    """
    package = open_package(source, device)
    if law != "best":
        package.which = law
    if not isinstance(package.law(torch.zeros(1, package.latent_size, device=device)), GaussianLaw):
        raise InputError(
            f"the likelihood {package.term} is not Gaussian: use the fitted law (--law fitted), or "
            "a decoder of likelihood.term blur, gaussian or fourier_gaussian"
        )
    return package


def check_finest(package: DecoderPackage, finest: int) -> None:
    """Raise InputError where no level of the decoder is that coarse; 0 stands for all levels."""
    try:
        like = next(package.parameters())
        package.up_to(like.new_zeros(1, package.latent_size), finest or package.image_shape[-1])
    except ValueError as error:
        raise InputError(f"--finest {finest}: {error}") from error


def unseen_subjects(
    store: Store,
    package: DecoderPackage,
    split: str,
    subject: str = "",
    other_people: bool = False,
) -> list[SubjectEntry]:
    """The subjects of a split, or the one that is named.

    other_people: the store's subjects are others than those trained on, whatever their names, so
    that the same file alone counts as trained on; this is printed.

    Raises:
        InputError: there is none, the images have another shape than the decoder's or were prepared
            in another way, or the decoder was trained on a subject.
    """
    if tuple(store.image_shape) != tuple(package.image_shape):
        raise InputError(
            f"store {store.name} holds images of {store.image_shape}, the decoder draws "
            f"{tuple(package.image_shape)}: prepare it with the same prepare.size"
        )
    other = differing(store.manifest["configuration"], package.prepare_keys)
    if other:
        raise InputError(
            f"store {store.name} was prepared with another {', '.join(other)} than the decoder's: "
            "prepare it as the decoder's was"
        )
    entries = [e for e in store.subjects("all" if subject else split)
               if subject in ("", e.subject)]  # fmt: skip
    if not entries:
        raise InputError(f"store {store.name} has no subjects in split {split}" if not subject else
                         f"store {store.name} has no subject {subject}")  # fmt: skip
    if other_people and store.digest == package.metadata["store"].get("digest"):
        raise InputError(
            f"--other_people: store {store.name} is the one that was trained on, so equal names "
            "are the same people"
        )
    seen = [
        e.subject
        for e in entries
        if package.trained_on(source_sha256=e.source_sha256)
        or (not other_people and package.trained_on(subject=e.subject, family=e.family))
    ]
    if seen:
        way_out = "" if other_people else WAY_OUT.format("--other_people true")
        raise InputError(
            f"{len(seen)} of {len(entries)} subjects were trained on by this decoder "
            f"({', '.join(seen[:5])}): score the split test, or a store of other subjects{way_out}"
        )
    if other_people:
        print(f"--other_people: {FILES_CHECKED}")
    return entries


def package_record(package: DecoderPackage, source: str) -> dict[str, Any]:
    """Which decoder it was, for scores.json."""
    keys = ("name", "digest", "run", "store")
    return {"source": source, **{key: package.metadata.get(key) for key in keys}}
