"""The decoder package of an analysis, and the subjects it may be applied to."""

from collections.abc import Sequence
from typing import Any

import torch

from data_prep.common.wording import quantity
from pipeline.analysis.options import (
    AnomalyOptions,
    LesionsOptions,
    PackageOptions,
    StoreOptions,
)
from pipeline.data.slices import FILES_CHECKED, WAY_OUT, Store, SubjectEntry, open_store
from pipeline.data.volumes import differing
from pipeline.errors import InputError
from pipeline.files import work_folder
from pipeline.losses.law import GaussianLaw
from pipeline.package.format import open_package
from pipeline.package.package import DecoderPackage

SPLITS = ("test", "validation", "all")
# Below so many families a calibration depends on who they are.
FEW_CALIBRATED = 5


def open_prior(options: PackageOptions, device: str = "cpu") -> DecoderPackage:
    """The package of the options, with the Gaussian law of residuals that they name.

    Raises InputError where there is no such package or law, and for images of several channels.
    """
    package = open_package(options.package, device)
    if options.law != "best":
        package.which = options.law
    if package.image_shape[0] != 1:
        raise InputError(f"the decoder draws {package.image_shape[0]} channels: MR images have one")
    if not isinstance(package.law(torch.zeros(1, package.latent_size, device=device)), GaussianLaw):
        raise InputError(
            f"the likelihood {package.term} is not Gaussian: use the fitted law (--law fitted), or "
            "a decoder of likelihood.term blur, gaussian or fourier_gaussian"
        )
    return package


def open_decoders(
    options: AnomalyOptions | LesionsOptions, device: str = "cpu"
) -> dict[str, DecoderPackage]:
    """The "package" of the options and, where they name one, the "baseline".

    Raises InputError, too, where no level is as coarse as `options.finest`, or the baseline's
    images were prepared in another way.
    """
    decoders = {"package": open_prior(options, device)}
    if options.baseline:
        decoders["baseline"] = open_package(options.baseline, device)
    for decoder in decoders.values():
        other = differing(decoders["package"].prepare_keys, decoder.prepare_keys)
        if other:
            raise InputError(f"the baseline's images were prepared with another {', '.join(other)}")
        try:
            latent = torch.zeros(1, decoder.latent_size, device=device)
            decoder.up_to(latent, options.finest or decoder.image_shape[-1])
        except ValueError as error:
            raise InputError(f"--finest {options.finest}: {error}") from error
    return decoders


def unseen_subjects(
    options: StoreOptions, *packages: DecoderPackage
) -> tuple[Store, list[SubjectEntry]]:
    """The store and the subjects that the options name, whom no package was trained on.

    Raises InputError where there is none, images have another shape than the decoders' or were
    prepared in another way, or a decoder was trained on a subject.
    """
    store = open_store(options.store, work_folder())
    wanted = options.subjects
    entries = store.subjects(wanted if wanted in SPLITS else "all")
    if wanted not in SPLITS:
        entries = [entry for entry in entries if entry.subject == wanted]
    if not entries:
        kind = "subjects in split" if wanted in SPLITS else "subject"
        raise InputError(f"store {store.name} has no {kind} {wanted}")
    for package in packages:
        _check_unseen(store, entries, package, options.other_people)
    if options.other_people:
        print(f"--other_people: {FILES_CHECKED}")
    return store, entries


def _check_unseen(
    store: Store, entries: list[SubjectEntry], package: DecoderPackage, other_people: bool
) -> None:
    if tuple(store.image_shape) != tuple(package.image_shape):
        raise InputError(
            f"store {store.name} holds images of {store.image_shape}, the decoder draws "
            f"{tuple(package.image_shape)}: prepare it with the same prepare.size"
        )
    if other := differing(store.manifest["configuration"], package.prepare_keys):
        raise InputError(
            f"store {store.name} was prepared with another {', '.join(other)} than the decoder's: "
            "prepare it as the decoder's was"
        )
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


def caveats(
    package: DecoderPackage, simulated: bool, entries: Sequence[SubjectEntry] = ()
) -> list[str]:
    """What must be said beside results of images that the decoder is not made for.

    simulated: whether the images are of simulated people; entries: the subjects they are of.
    """
    said = []
    if package.metadata["store"].get("simulated") and not simulated:
        said.append("this decoder has seen simulated people only: on real ones it is not tested")
    fitted = package.metadata.get("fitted_on")
    if package.which != "fitted" or fitted is None:
        return said
    known = [
        e for e in entries
        if package.fitted_on(subject=e.subject, family=e.family, source_sha256=e.source_sha256)
    ]  # fmt: skip
    if known:
        people = f"{len(known)} of these {len(entries)} subjects"
        said.append(f"in-sample: the law of residuals was fitted to {people}")
    if fitted["families"] < FEW_CALIBRATED:
        families = quantity(fitted["families"], "validation family")
        said.append(f"the law of residuals was calibrated by {families}: its intervals may be off")
    return said


def record(package: DecoderPackage) -> dict[str, Any]:
    """The decoder's name and origin, for a results' JSON."""
    return {key: package.metadata.get(key) for key in ("name", "digest", "run", "store")}
