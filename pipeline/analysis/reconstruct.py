"""Reconstruct undersampled or degraded MR images under a decoder's prior, beside total variation.

python -m pipeline reconstruct --package DIR --store STORE            subjects of a store, scored
python -m pipeline reconstruct --package DIR --image x.nii.gz         one slice, undersampled here
python -m pipeline reconstruct --package DIR --kspace k.npy --like x.nii.gz --mask m.npy
python -m pipeline reconstruct --package DIR --operator image --image x.nii.gz --factor 2
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from data_prep.common.progress import Reporter
from data_prep.common.wording import quantity
from pipeline.analysis import jobs, problems
from pipeline.analysis.jobs import ReconstructOptions as Options
from pipeline.analysis.solver import SolverSettings
from pipeline.data.slices import SubjectEntry
from pipeline.errors import InputError
from pipeline.figures import bare, mark_sides, write_figure
from pipeline.files import csv_text, write_json, write_text
from pipeline.metrics.statistics import Interval, aggregate, few, over_families

METRICS = ("psnr", "ssim", "nrmse")


def run(options: Options) -> None:
    """The command. Raises InputError, in one line, where the inputs do not fit each other."""
    package = jobs.open_decoders(options)["package"]
    given = {"total variation": options.tv_weight, "wavelets": options.wavelet_weight}
    weights = {method: weight for method, weight in given.items() if weight is not None}
    entries: list[SubjectEntry] = []
    digest, fourier = "", options.operator == "fourier"
    try:
        if options.store:
            store, entries = jobs.unseen_subjects(options, package)
            target, digest, simulated = store.name, store.digest, store.simulated
            cases = problems.cases_of_store(options, store, entries)
        else:
            target = jobs.image_name(Path(options.kspace or options.image))
            cases = [problems.case_of_slice(options, package)]
            simulated, usual = cases[0].simulated, 0.003 if fourier else 0.01
            weights = dict.fromkeys(given, usual) | weights
        wanted = [method for method in given if method not in weights]
        known = problems.validation_problems(options, store, entries) if wanted else []
        cases[0].state()  # a mask or factor that does not fit is told before the work
    except ValueError as error:
        raise InputError(str(error)) from error
    notes = jobs.caveats(package, simulated, entries)
    kind = "acceleration" if fourier else "operator"
    named = jobs.named_folder(options, "reconstructions", target, kind)
    there = jobs.results(options, named, [package], "scores.json", digest)
    with there as folder, Reporter() as reporter:
        if folder is None:
            return
        simple = "zero filling" if fourier else "degraded"
        slices, people = sum(case.slices for case in cases), quantity(len(cases), "subject")
        print(
            f"reconstruct, {_measured(options)}: {quantity(slices, 'slice')} of "
            f"{f'{people} of store {target}' if options.store else target}, by {simple}, "
            f"{', '.join(given)} and the decoder",
            *(f"note: {note}" for note in notes),
            sep="\n",
            flush=True,
        )
        if (chosen := folder / "weights.json").exists():
            weights |= json.loads(chosen.read_text())
        for method in (m for m in wanted if m not in weights):
            others = quantity(len(known), "validation subject")
            reporter.update(0.0, f"weight of {method} from {others}")
            weights[method] = problems.choose_weight(method, known)
            write_json(chosen, weights)
        settings = SolverSettings(
            latent_steps=options.steps,
            image_steps=3 * options.steps // 4,
            seed=options.seed,
            samples=options.samples,
        )
        rows = []
        for number, case in enumerate(cases):
            place = folder / case.name
            if not (place / "methods.json").exists():

                def tell(part: float, number: int = number) -> None:
                    done = (number + part) / len(cases)
                    reporter.update(done, f"subject {number + 1} of {len(cases)}")

                tell(0.0)
                problem = case.state()
                images, deviation = problems.solve_all(
                    problem, simple, package, weights, settings, tell
                )
                case.write(place, "reconstruction", images[problems.IMAGE])
                scores, coverage, truth = {}, None, problem.reference
                if truth is not None:
                    scores = {m: problems.score(truth, image) for m, image in images.items()}
                if deviation is not None:
                    case.write(place, "deviation", deviation)
                    if truth is not None:
                        image = images[problems.IMAGE]
                        coverage = problems.covered(truth, image, deviation, options.samples)
                title = f"{case.name} of store {target}" if options.store else target
                title += " (simulated person)" if simulated else ""
                title += f", {_measured(options)}, decoder {Path(options.package).name}"
                figure = comparison(problem, images, scores, title, package.plane)
                write_figure(place / "comparison.png", figure)
                # Last: with it the rest is whole.
                write_json(place / "methods.json", {"coverage_90": coverage, "methods": scores})
            row = {"subject": case.name, "family": case.family, "slices": case.slices}
            rows.append(row | json.loads((place / "methods.json").read_text()))
        lines = [
            {"subject": row["subject"], "method": method, "slices": row["slices"], **scores}
            for row in rows
            for method, scores in row["methods"].items()
        ]
        table = csv_text(lines, ["subject", "method", "slices", *METRICS])
        write_text(folder / "scores.csv", table)
        record = {
            "decoder": jobs.record(package),
            "options": vars(options),
            "notes": notes,
            "weights": weights,
            "scale": cases[0].unit,
        }
        summary = summarised(rows)
        write_json(folder / "scores.json", record | summary)
    if summary["methods"]:
        print(described(summary))
        if note := few(summary["families"]):
            print(f"note: {note}")
    print(f"images, scores, figures: {folder}")


def _measured(options: Options) -> str:
    if options.operator == "image":
        return f"noise {options.deviation:g}, blur {options.blur:g}, factor {options.factor}"
    if options.mask or options.kspace:
        return "samples of a file"
    return f"acceleration {options.acceleration:g}"


def summarised(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over families with intervals: of methods, of what the decoder gains, of coverage."""
    families = [row["family"] for row in rows]
    scores = {
        method: {m: np.array([row["methods"][method][m] for row in rows]) for m in METRICS}
        for method in rows[0]["methods"]
    }
    psnr = {method: values["psnr"] for method, values in scores.items()}
    gains = {
        method: over_families(psnr[problems.IMAGE] - psnr[method], families)
        for method in scores
        if method != problems.IMAGE
    }
    summary: dict[str, Any] = {
        "subjects": len(rows),
        "families": len(set(families)),
        "methods": {method: aggregate(values, families) for method, values in scores.items()},
        "decoder_gains_psnr": gains,
    }
    coverage = [row["coverage_90"] for row in rows]
    if None not in coverage:
        summary["error_bars"] = {"coverage_90": over_families(np.array(coverage), families)}
    return summary


def described(summary: Mapping[str, Any]) -> str:
    """The methods' means, what the decoder gains and the coverage of its error bars, as text."""

    def shown(value: Interval, form: str) -> str:
        ends = [f"{value[end]:{form}}" for end in ("low", "high") if value[end] is not None]
        return f"{value['mean']:{form}}" + (f" [{', '.join(ends)}]" if ends else "")

    lines = [f"{'method':24s} {'PSNR, dB':22s} {'SSIM':24s} decoder's gain, dB"]
    for method, metrics in summary["methods"].items():
        psnr, ssim = shown(metrics["psnr"], ".2f"), shown(metrics["ssim"], ".4f")
        gain = summary["decoder_gains_psnr"].get(method)
        gained = shown(gain, "+.2f") if gain else ""
        lines.append(f"{method:24s} {psnr:22s} {ssim:24s} {gained}".rstrip())
    if bars := summary.get("error_bars"):
        share = shown(bars["coverage_90"], ".1%")
        lines.append(f"{share} of the head's pixels lie within their 90% intervals")
    return "\n".join(lines)


def comparison(
    problem: problems.Problem,
    images: Mapping[str, Tensor],
    scores: Mapping[str, Mapping[str, float]],
    title: str,
    plane: str = "",
) -> Figure:
    """A subject's middle slice by every method, its errors (method − truth) below, the mask."""
    truth, middle = problem.reference, len(problem.simple) // 2
    panels = {} if truth is None else {"reference": truth[middle, 0]}
    panels |= {method: image[middle, 0] for method, image in images.items()}
    if problem.mask is not None:
        panels["k-space mask"] = problem.mask
    rows = 1 if truth is None else 2
    figure = Figure(figsize=(1.75 * len(panels), 1.85 * rows + 0.6), layout="constrained")
    axes = figure.subplots(rows, len(panels), squeeze=False)
    for axis in axes.flat:
        bare(axis)
    for column, (name, image) in enumerate(panels.items()):
        axes[0, column].imshow(image.numpy(), cmap="gray", vmin=0, vmax=1)
        axes[0, column].set_title(name, fontsize=8)
        if name != "k-space mask":
            mark_sides(axes[0, column], plane)
        if truth is not None and name in scores:
            error = (image - truth[middle, 0]).numpy()
            drawn = axes[1, column].imshow(error, cmap="RdBu_r", vmin=-0.2, vmax=0.2)
            label = f"{scores[name]['psnr']:.1f} dB, SSIM {scores[name]['ssim']:.3f}"
            axes[1, column].set_xlabel(label, fontsize=7)
    if truth is not None:
        bar = figure.colorbar(drawn, ax=axes, shrink=0.6, pad=0.01, extend="both")
        bar.set_label("error, intensity", fontsize=8)
        title += ": the middle slice; scores are means over slices"
    figure.suptitle(title, fontsize=9)
    return figure
