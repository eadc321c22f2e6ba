"""The pictures of a report, kept while subjects are scored: a few of however many there are."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

# Of the best slices and of the worst, each of another subject.
KEPT = 4


@dataclass(frozen=True)
class Pair:
    """A slice and its reconstruction, (C,H,W) in [0,1].

    place: the slice's number in its volume, where that is known; psnr: dB, of the whole slice or,
    of extremes, what they are chosen by.
    """

    subject: str
    place: int | None
    psnr: float
    image: Tensor
    reconstruction: Tensor


@dataclass
class Extremes:
    """The slices of highest and of lowest score, at most one of a subject, the extreme one first.

    One of a subject: else a single odd volume would fill the row.
    """

    best: list[Pair] = field(default_factory=list)
    worst: list[Pair] = field(default_factory=list)

    def add(
        self,
        subject: str,
        images: Tensor,
        made: Tensor,
        scores: Tensor,
        places: Sequence[int] = (),
    ) -> None:
        """Look at a subject's slices and their reconstructions, (n,C,H,W) on the CPU.

        scores: PSNR of each, (n,) in dB, NaN for slices that are passed over; places: the slices'
        numbers in their volume, if known.
        """
        if scores.isnan().all():
            return
        for kept, number, sign in (
            (self.best, int(scores.nan_to_num(-torch.inf).argmax()), -1),
            (self.worst, int(scores.nan_to_num(torch.inf).argmin()), 1),
        ):
            kept.append(pair_of(subject, number, images, made, scores, places))
            kept.sort(key=lambda pair: sign * pair.psnr)  # stable: the earlier of equals stays
            del kept[KEPT:]


def pair_of(
    subject: str,
    number: int,
    images: Tensor,
    made: Tensor,
    scores: Tensor,
    places: Sequence[int] = (),
) -> Pair:
    """One of a subject's slices; arguments as of `Extremes.add`."""
    place = places[number] if places else None
    # Copies: a view would keep all slices of the subject.
    return Pair(subject, place, scores[number].item(), images[number].clone(), made[number].clone())


@dataclass(frozen=True)
class Pictures:
    """What the page shows beside numbers and figures.

    pairs: middle slices of subjects, evenly spread; samples and data: images (n,C,H,W), as many
    drawn from the prior as of the data; drawn: where the samples' latents come from.
    """

    pairs: Sequence[Pair]
    best: Sequence[Pair]
    worst: Sequence[Pair]
    samples: Tensor | None = None
    data: Tensor | None = None
    drawn: str = ""
