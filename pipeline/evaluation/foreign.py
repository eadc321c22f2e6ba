"""Score the reconstructions of another program: pairs of files, or the program itself.

python -m pipeline evaluate --reconstructions FOLDER                     pairs of NIfTI, .npy files
python -m pipeline evaluate --reconstructions model.pt2 --store STORE    a torch.export program
"""

import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data_prep.common.progress import Reporter
from pipeline.analysis.problems import read_array
from pipeline.config import EvaluationConfig
from pipeline.config import ForeignOptions as Options
from pipeline.data.slices import SliceDataset, Store, open_store
from pipeline.data.volumes import read_on_grid_of
from pipeline.errors import InputError
from pipeline.evaluation.figures import pair_figures
from pipeline.evaluation.report import About, Evaluation, shell_line, table, write_evaluation
from pipeline.evaluation.run import FILES, REPORT
from pipeline.evaluation.scoring import Scored, Tally, load_networks
from pipeline.files import work_folder, writable

SUFFIXES = (".nii.gz", ".nii", ".npy")
# Rounding of a program's own scaling to [0,1].
SLACK = 1e-3

Pair = tuple[dict[str, str], Tensor, Tensor, float]
"""Names of a subject and its family, its images, their reconstructions, (n,C,H,W) in [0,1], and
the share of all subjects that are then done."""


def run(options: Options) -> None:
    """The command. Raises InputError where pairs do not fit each other, or a program its images."""
    source, store = Path(options.reconstructions), None
    if not source.is_dir():
        if not options.store:
            raise InputError(
                f"{source} is no folder: a program needs --store STORE, whose images it "
                "reconstructs"
            )
        store = open_store(options.store, work_folder())
        pairs = _of_program(source, store, options)
    elif options.store:
        raise InputError("a folder has originals of its own: leave --store out")
    else:
        pairs = _of_folder(source)
    first = next(pairs)  # a mistake in it shows before anything is written or loaded
    name = source.name.partition(".")[0]
    folder = Path(options.output or work_folder() / "scores" / name)
    writable(folder)
    if strange := sorted({path.name for path in folder.iterdir()} - FILES):
        raise InputError(
            f"{folder} holds {strange[0]}, and results replace what is there: give --output a new "
            "folder"
        )
    simulated = store is not None and store.simulated
    evaluation = score(chain([first], pairs), options.settings, simulated)
    given = {k: v for k, v in asdict(options).items() if v != getattr(Options, k, None)}
    about = About(
        title=name,
        kind="scores of another program's reconstructions",
        what="Reconstructions from elsewhere",
        of=f" of store {options.store}, split {options.split}" if store else "",
        simulated=simulated,
        commands=[shell_line("evaluate", given)],
    )
    write_evaluation(folder, evaluation, {"options": asdict(options)}, about)
    print(table(evaluation.metrics))
    print(f"report: {folder / REPORT}")


@torch.no_grad()
def score(pairs: Iterable[Pair], settings: EvaluationConfig, simulated: bool) -> Evaluation:
    """The table of `evaluate` but for what needs a model: rate, bound, calibration, samples.

    pairs: subject by subject; a wrong one raises InputError when it is reached. simulated: whether
    the images are; the figure's title mentions it.
    """
    tally = Tally(load_networks(settings))
    with Reporter() as reporter:
        for labels, images, made, done in pairs:
            name = labels["subject"]
            if (images == images[..., :1, :1]).all():
                raise InputError(f"the originals of {name} are black, or flat: leave it out")
            batches = zip(*(x.split(settings.batch_size) for x in (images, made)), strict=True)
            tally.add(labels, Scored.joined([tally.score(*batch) for batch in batches]))
            reporter.update(done, f"subject {name}")
    figures = pair_figures(tally, "another program" + " (simulated people)" * simulated, "")
    return Evaluation(tally.metrics(settings.seed), tally, figures, tally.networks.absent)


def _of_folder(folder: Path) -> Iterator[Pair]:
    """Pairs of files, all names checked before the first is read."""
    originals, made = (_files(folder / part) for part in ("originals", "reconstructions"))
    if alone := sorted(originals.keys() ^ made.keys()):
        path = (originals | made)[alone[0]]
        raise InputError(f"{path} has no file of its name in the other folder: each needs its pair")
    size = None
    for number, (name, path) in enumerate(originals.items(), 1):
        images, reconstructions = _slices(path), _slices(made[name], path)
        if images.shape != reconstructions.shape:
            raise InputError(
                f"{path} is {_shape(images)}, {made[name]} {_shape(reconstructions)}: a pair "
                "must have one shape"
            )
        if images.shape[1:] != (size := size or images.shape[1:]):
            raise InputError(f"{path} holds images of another size than the files before it")
        labels = {"subject": name, "family": name}
        pair = _in_range(images, path), _in_range(reconstructions, made[name])
        yield labels, *pair, number / len(originals)


def _files(folder: Path) -> dict[str, Path]:
    """Files by name without suffix. Raises InputError where there are none, or two of a name."""
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        suffix = next((suffix for suffix in SUFFIXES if path.name.endswith(suffix)), "")
        name = path.name.removesuffix(suffix)
        if suffix and name in files:
            raise InputError(f"{files[name]} and {path} have one name: keep one of them")
        if suffix:
            files[name] = path
    if not files:
        raise InputError(
            f"no {', '.join(SUFFIXES)} in {folder}: put originals and reconstructions in two "
            "folders of those names"
        )
    return files


def _slices(path: Path, original: Path | None = None) -> Tensor:
    """A file's slices (n,C,H,W): of (H,W), (n,H,W) or (n,C,H,W) in .npy, (X,Y,Z) in NIfTI.

    original: the file that it is compared with; of two volumes it is brought to that one's axes.
    """
    volumes = original is not None and not any(p.name.endswith(".npy") for p in (path, original))
    values = read_on_grid_of(path, original) if original and volumes else read_array(path)
    if path.name.endswith(".npy") and values.ndim in (2, 3):
        values = values.reshape(-1, 1, *values.shape[-2:])
    elif not path.name.endswith(".npy") and values.ndim == 3:
        values = values.transpose(2, 0, 1)[:, None]
    if values.ndim != 4 or not values.size or values.shape[1] not in (1, 3):
        raise InputError(
            f"{path} must hold slices (n,H,W) or (n,C,H,W), C 1 or 3, or a volume (X,Y,Z) in "
            f"NIfTI, not {values.shape}"
        )
    if not np.issubdtype(values.dtype, np.floating) or not np.isfinite(values).all():
        raise InputError(f"{path} must hold finite floating-point numbers, in [0,1]")
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))


def _in_range(images: Tensor, source: Path) -> Tensor:
    low, high = (value.item() for value in images.aminmax())
    if not (low >= -SLACK and high <= 1 + SLACK):
        raise InputError(
            f"{source} holds values from {low:.3g} to {high:.3g}: scale originals and "
            "reconstructions alike, to [0,1]"
        )
    return images.clamp(0, 1)


def _of_program(path: Path, store: Store, options: Options) -> Iterator[Pair]:
    """A store's subjects through a program."""
    entries = store.subjects(options.split)
    if not entries:
        raise InputError(f"store {store.name} has no subjects in split {options.split}")
    try:
        if not zipfile.is_zipfile(path):  # torch prints warnings about such files
            raise ValueError
        program = torch.export.load(path).module()
    except Exception as error:  # whatever torch raises for another kind of archive
        none = f"{path} is no torch.export program: save one with torch.export.save"
        raise InputError(none) from error
    data = SliceDataset(store, entries)
    for number, entry in enumerate(entries):
        images, made = data.of_subject(number, options.max_slices), []
        for batch in images.split(options.settings.batch_size):
            try:
                made.append(program(batch).float())
                if made[-1].shape != batch.shape:
                    raise ValueError(_shape(made[-1]))
            except Exception as error:  # whatever a program raises for an input it can't take
                line = (str(error).strip().splitlines() or [""])[0][:120]
                raise InputError(
                    f"{path} gives no images of the same shape for images {_shape(batch)} "
                    f"({type(error).__name__}: {line}): export it with a dynamic batch, for images "
                    "of the store's size"
                ) from error
        labels = {"subject": entry.subject, "family": entry.family, "split": entry.split}
        yield labels, images, _in_range(torch.cat(made), path), (number + 1) / len(entries)


def _shape(images: Tensor) -> str:
    return "x".join(map(str, images.shape))
