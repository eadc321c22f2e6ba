"""Reconstruct undersampled or degraded MR images under a decoder's prior, beside total variation.

python -m pipeline reconstruct --package DIR --store STORE            subjects of a store, scored
python -m pipeline reconstruct --package DIR --image x.nii.gz         one slice, undersampled here
python -m pipeline reconstruct --package DIR --kspace k.npy --like x.nii.gz --mask m.npy
python -m pipeline reconstruct --package DIR --operator image --image x.nii.gz --factor 2
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_prep.common.progress import Reporter
from data_prep.common.wording import quantity
from pipeline.analysis import results
from pipeline.analysis.options import ReconstructOptions as Options
from pipeline.analysis.options import check_there
from pipeline.files import csv_text, write_json, write_text

FILES = ("image", "kspace", "like", "sensitivities", "mask")


def run(options: Options) -> None:
    """The command. Raises InputError, in one line, where the inputs do not fit each other."""
    check_there(options, *FILES)
    from pipeline.analysis import figures, packages, problems
    from pipeline.analysis.solver import SolverSettings

    package = packages.open_prior(options)
    given = {"total variation": options.tv_weight, "wavelets": options.wavelet_weight}
    if options.store:
        store, entries = packages.unseen_subjects(options, package)
        cases = problems.cases_of_store(options, store, entries)
        target, digest, simulated = store.name, store.digest, store.simulated
        notes = packages.caveats(package, simulated, entries)
        wanted = [method for method, weight in given.items() if weight is None]
        known = problems.validation_problems(options, store, entries) if wanted else []
    else:
        cases, wanted, known = [problems.case_of_slice(options, package)], [], []
        target = results.image_name(Path(options.kspace or options.image))
        digest, simulated = "", cases[0].simulated
        notes = packages.caveats(package, simulated)
        usual = 0.003 if options.operator == "fourier" else 0.01
        given = {method: usual if weight is None else weight for method, weight in given.items()}
    question = results.question_of(
        options,
        decoder=package.metadata["digest"],
        store=digest,
        files=[results.digest_of(getattr(options, name)) for name in FILES],
    )
    kind = "acceleration" if options.operator == "fourier" else "operator"
    folder = results.folder_of(options, "reconstructions", target, question, kind)
    if results.answered(folder, question):
        return
    cases[0].state()  # a mask or factor that does not fit is told before the work
    simple = "zero filling" if options.operator == "fourier" else "degraded"
    slices, people = sum(case.slices for case in cases), quantity(len(cases), "subject")
    of = f"{people} of store {target}" if options.store else target
    print(
        f"reconstruct, {_measured(options)}: {quantity(slices, 'slice')} of {of}, by {simple}, "
        f"{', '.join(given)} and the decoder",
        flush=True,
    )
    for note in notes:
        print(f"note: {note}")
    settings = SolverSettings(
        latent_steps=options.steps,
        image_steps=3 * options.steps // 4,
        seed=options.seed,
        samples=options.samples,
    )
    with results.answering(folder, question) as draft, Reporter() as reporter:
        chosen = draft / "weights.json"
        weights: dict[str, Any] = json.loads(chosen.read_text()) if chosen.exists() else {**given}
        for method in wanted:
            if weights[method] is None:
                others = quantity(len(known), "validation subject")
                reporter.update(0.0, f"weight of {method} from {others}")
                weights[method] = problems.choose_weight(method, known)
                write_json(chosen, weights)
        rows = []
        for number, case in enumerate(cases):
            place = draft / case.name
            if not (place / "methods.json").exists():

                def told(part: float, number: int = number) -> None:
                    done = (number + part) / len(cases)
                    reporter.update(done, f"subject {number + 1} of {len(cases)}")

                told(0.0)
                problem = case.state()
                solved = problems.solve_all(problem, simple, package, weights, settings, told)
                case.write(place, "reconstruction", solved.images[problems.IMAGE])
                if solved.deviation is not None:
                    case.write(place, "deviation", solved.deviation)
                title = f"{case.name} of store {target}" if options.store else target
                title += " (simulated person)" if simulated else ""
                figures.write(place / "comparison.png", figures.comparison(problem, solved, title))
                scores = {"coverage_90": solved.coverage, "methods": solved.scores}
                write_json(place / "methods.json", scores)  # last: with it the rest is whole
            of_case = {"subject": case.name, "family": case.family, "slices": case.slices}
            rows.append(of_case | json.loads((place / "methods.json").read_text()))
        summary = _summary(rows)
        record = {
            "decoder": packages.record(package),
            "options": asdict(options),
            "notes": notes,
            "weights": weights,
            "scale": cases[0].unit,
            **summary,
        }
        write_json(draft / "scores.json", record)
        write_text(draft / "scores.csv", _table(rows))
    if summary["methods"]:
        print(_described(summary))
        results.print_few(summary["families"])
    print(f"images, scores, figures: {folder}")


def _measured(options: Options) -> str:
    """How, in words."""
    if options.operator == "image":
        return f"noise {options.deviation:g}, blur {options.blur:g}, factor {options.factor}"
    if options.mask or options.kspace:
        return "samples of a file"
    return f"acceleration {options.acceleration:g}"


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """scores.csv: a row per subject and method."""
    lines = [
        {"subject": row["subject"], "method": method, "slices": row["slices"], **scores}
        for row in rows
        for method, scores in row["methods"].items()
    ]
    return csv_text(lines, ["subject", "method", "slices", "psnr", "ssim", "nrmse"])


def _summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over families with intervals: of methods, of what the decoder gains, of coverage."""
    import numpy as np

    from pipeline.metrics.statistics import aggregate, over_families, paired_difference

    family = {row["subject"]: row["family"] for row in rows}
    families = list(family.values())
    methods = {}
    psnr: dict[str, dict[str, float]] = {}
    for method, scores in rows[0]["methods"].items():
        values = {m: np.array([row["methods"][method][m] for row in rows]) for m in scores}
        methods[method] = aggregate(values, families)
        psnr[method] = {row["subject"]: row["methods"][method]["psnr"] for row in rows}
    *others, decoder = psnr.values() if psnr else [{}]  # the decoder's image is the last
    gains = {
        method: paired_difference(decoder, other, family)
        for method, other in zip(psnr, others, strict=False)
    }
    summary: dict[str, Any] = {
        "subjects": len(rows),
        "families": len(set(families)),
        "methods": methods,
        "decoder_gains_psnr": gains,
    }
    coverage = [row["coverage_90"] for row in rows]
    if None not in coverage:
        summary["error_bars"] = {"coverage_90": over_families(np.array(coverage), families)}
    return summary


def _described(summary: Mapping[str, Any]) -> str:
    """The methods' means, what the decoder gains and the coverage of its error bars, as text."""

    def shown(value: Mapping[str, Any], form: str) -> str:
        ends = [] if value["low"] is None else [value["low"], value["high"]]
        within = f" [{', '.join(f'{end:{form}}' for end in ends)}]" if ends else ""
        return f"{value['mean']:{form}}{within}"

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
