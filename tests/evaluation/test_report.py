"""The report of a run: complete, escaped, self-contained; its figures, slices and table."""

import io
import math
import re
from collections.abc import Callable
from html import escape

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from torch import Tensor

from pipeline.evaluation import figures
from pipeline.evaluation.calibration import BINS, REGIONS
from pipeline.evaluation.report import About, note, notes_of, table
from pipeline.evaluation.scoring import KEPT, Networks, Pair, Tally
from pipeline.figures import image_grid, plain_decimals
from pipeline.metrics.catalogue import GROUPS, HEADLINE
from pipeline.metrics.statistics import Interval, single

HOSTILE = "<img src='http://example.org/x.png'><script>alert('x')</script>{{ 7 * 7 }}"
METRICS = [metric for group in GROUPS.values() for metric in group]


def images(count: int, channels: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, channels, 16, 16, generator=generator)


def add(tally: Tally, clean: Tensor, errors: list[float], name: str = "s") -> None:
    """Add a subject whose slices (n,C,H,W) are reconstructed with an error of one size each."""
    made = (clean + (clean > 0) * torch.tensor(errors)[:, None, None, None]).clamp(0, 1)
    scored = tally.score(clean, made)
    tally.add({"subject": name, "family": name}, scored, [10, 20, 30][: len(clean)])


def test_extremes_are_the_best_and_the_worst_slices_of_different_subjects() -> None:
    tally, clean = Tally(Networks(), image_set=True), images(3)
    for number in range(KEPT + 3):
        add(tally, clean, [0.3 - 0.01 * number, 0.05 + 0.01 * number, 0.15], f"s{number}")
    for pairs, place in ((tally.worst, 10), (tally.best, 20)):
        assert [pair.subject for pair in pairs] == [f"s{n}" for n in range(KEPT)]
        assert {pair.place for pair in pairs} == {place}
    assert torch.equal(tally.best[0].image, clean[1])
    clean[0] = 0  # no brain, no extreme
    tally = Tally(Networks())
    add(tally, clean, [0.3, 0.2, 0.1])
    assert [pair.place for pair in (*tally.best, *tally.worst)] == [30, 20]


@pytest.mark.parametrize("image_set", [False, True])
def test_an_empty_surround_makes_no_slice_the_best_but_of_photographs(image_set: bool) -> None:
    """The first slice has little brain and a large error in it, the second the opposite."""
    clean = torch.zeros(2, 1, 16, 16)
    clean[0, :, :2, :2], clean[1] = 0.5, 0.5
    clean[:, :, 0, 0] = 0.6  # some detail, or ratios were undefined
    tally = Tally(Networks(), image_set)
    add(tally, clean, [0.2, 0.1])
    [best], [worst] = tally.best, tally.worst
    assert (best.place, worst.place) == ((10, 20) if image_set else (20, 10))
    assert best.psnr == pytest.approx(-20 * math.log10(0.2 / 8 if image_set else 0.1), abs=1e-3)


@pytest.mark.parametrize(
    ("simulated", "image_set", "words"),
    [
        (True, False, "slices of unseen simulated people"),
        (False, False, "slices of unseen subjects"),
        (False, True, "unseen images"),
    ],
)
def test_no_simulated_slice_is_called_real(
    page_writer: Callable[..., str], simulated: bool, image_set: bool, words: str
) -> None:
    about = About("run", "scores", "Trained", simulated=simulated, image_set=image_set)
    html = page_writer(about=about)
    assert f"<figcaption>{words}</figcaption>" in html and f"beside as many {words}." in html
    assert re.findall(r"\breal [a-z]+", html) == ["real scans"] * simulated  # "not real scans"


@pytest.mark.parametrize("channels", [1, 3])
def test_the_page_shows_pictures_scores_and_how_to_repeat_and_asks_nothing_of_the_network(
    page_writer: Callable[..., str], channels: int
) -> None:
    html = page_writer(channels=channels)
    assert html == page_writer(channels=channels)
    cards = re.findall(r'<div class="card">(.*?)</div>', html, re.DOTALL)
    assert len(cards) == len(HEADLINE)
    (blur,) = (card for card in cards if "blur effect" in card)
    for words in ("0.500", "[0.250, 0.750]", "data 0.341", "better near the data"):
        assert words in blur
    rows = re.findall(r'<tr><th scope="row">(.*?)</th>', html)
    assert rows == [metric.label.replace("'", "&#39;") for metric in METRICS]
    assert html.count("data-pair>") == 3 + 1 + 1
    assert "p01, slice 40: original" in html and "slice 40, 22.00 dB" in html
    for part in ("kernels", "spectra", "samples", "repeat", "extremes"):
        assert f'id="{part}"' in html and f'href="#{part}"' in html
    assert 'id="calibration"' not in html  # it has no such figure
    assert "no weights for p01" in html and "simulated" in html
    texts = re.findall(r"<img [^>]*?alt=\"([^\"]*)\"", html)
    assert all(texts) and len(texts) == html.count("<img ")
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(", html)
    sources = re.findall(r"\b(?:src|href|action|data)=\"([^\"]*)\"", html)
    assert sources and all(source.startswith(("data:image/png;base64,", "#")) for source in sources)
    assert "default-src 'none'" in html[:2000]


def test_texts_of_files_cannot_become_html_and_a_page_without_samples_has_no_such_part(
    page_writer: Callable[..., str],
) -> None:
    html = page_writer(HOSTILE, place=None, samples=None, data=None)
    assert html.count("<script>") == 1 and "alert('x')" not in html
    assert escape(HOSTILE).replace("&#x27;", "&#39;") in html  # shown as it is
    assert "a &amp; b" in html and "slice None" not in html
    assert 'id="samples"' not in html and "#samples" not in html


def test_the_table_fits_a_terminal_of_eighty_columns() -> None:
    keys = {m.key for m in METRICS} | {m.data for m in METRICS if isinstance(m.data, str)}
    wide: Interval = {"mean": -1234.5678, "low": -1234.5678, "high": -1234.5678}
    small: Interval = {"mean": -4.417, "low": -4.481, "high": -4.341}
    scores = dict.fromkeys(keys, small) | {"rate": wide}
    assert max(map(len, table(scores).splitlines())) <= 80


def test_the_table_is_aligned_with_units_and_arrows() -> None:
    metrics: dict[str, Interval] = {
        "psnr": {"mean": 25.432, "low": 24.9, "high": 26.0},
        "sample_kid_coarse": {"mean": -0.0001, "low": None, "high": None},
        "rate": {"mean": 880.4, "low": 870.0, "high": 890.0},
        "elbo_bits_per_dim": {"mean": None, "low": None, "high": None},
        "training_kid_coarse": {"mean": 0.0021, "low": None, "high": None},
    }
    assert table(metrics).splitlines() == [
        "                    better   mean    95% interval   data",
        "Reconstructions",
        "  PSNR, dB          ↑       25.43  [24.90, 26.00]",
        "  rate, nats                  880      [870, 890]",
        "Samples from the prior",
        "  KID of 4×4 means  ↓       0.000                  0.002",
        "Likelihood and calibration",
        "  −ELBO, bits/dim   ↓           –",
        "and 1 more in metrics.json",
    ]
    floors = {"psnr": single(25.4), "rate": single(800.0), "floor_psnr": single(16.03)}
    ends = [line.split()[-1] for line in table(floors).splitlines()]
    assert ends[:4] == ["floor", "Reconstructions", "16.03", "800"] and not notes_of(floors)


@pytest.mark.parametrize("psnr", [7.0, 16.0])
def test_a_run_below_the_mean_slice_says_so_and_has_no_tile_of_calibration(
    page_writer: Callable[..., str], psnr: float
) -> None:
    metrics = {metric.key: single(0.5) for metric in METRICS}
    metrics |= {"psnr": single(psnr), "floor_psnr": single(16.0)}
    (text,) = notes_of(metrics)
    assert f"({psnr} dB) are no better than the mean slice (16.0 dB)" in text
    assert f"note: {text}" in table(metrics) and text in note(metrics, {})
    html = page_writer(metrics=metrics)
    assert text.partition(" ")[2] in html.partition("<nav")[0]
    cards = re.findall(r'<div class="card"><dt>(.*?) <i', html)
    assert "PSNR" in cards and not [card for card in cards if "90%" in card]


def test_few_families_show_no_privacy() -> None:
    (text,) = notes_of({"sample_families": single(7.0)})
    assert "7 families" in text and not notes_of({"sample_families": single(8.0)})


def pairs(channels: int) -> list[Pair]:
    return [Pair(f"subject{n}", 1, 20.0, image, 0.9 * image)
            for n, image in enumerate(images(3, channels))]  # fmt: skip


POWER = torch.linspace(1, 0.5, 9)
KERNELS = torch.zeros(2, 2, 1, 5, 5)
KERNELS[0, ..., 2, 2] = 1.0
KERNELS[1, ..., [0, 2, 2, 4], [2, 0, 4, 2]] = 0.25
LAW = {
    "pit": [1 / BINS] * BINS,
    "coverage": dict.fromkeys(REGIONS, 0.9),
    "region_variance": dict.fromkeys(REGIONS, 1.0),
    "variance": [1.0] * 17,
}
DRAWN: dict[str, tuple[Callable[[], Figure], list[str]]] = {
    "grey": (
        lambda: figures.reconstructions(pairs(1), "Reconstructions"),
        ["original", "reconstruction", "error", "intensity (0–1)", "subject0", "subject2"],
    ),
    "colour": (lambda: figures.reconstructions(pairs(3), "x"), ["subject1"]),
    "samples": (
        lambda: figures.samples(images(7), images(20), "x", "z"),
        ["data  (n = 7)", "samples: decoder(z), z"],
    ),
    "kernels": (
        lambda: figures.kernels(images(2, 3), {10: KERNELS[1], 1: KERNELS[0]}, "x"),
        ["epoch 1", "epoch 10", "width 0.00 px", "width 2.00 px", "5×5"],
    ),
    "spectra": (
        lambda: figures.spectra((16, 16), {"data": POWER, "samples": POWER / 2}, "x"),
        ["cycles/pixel", "intensity²", "power of data", "f = 0.25", "samples"],
    ),
    "calibration": (
        lambda: figures.calibration({"one": LAW, "two": LAW}, "test, store s"),
        ["one", "two", "as it should be", "share of pixels", "dark third", "test, store s"],
    ),
    "error bars": (
        lambda: figures.error_bars(pairs(3), torch.full((3, 3, 16, 16), 0.05), "x"),
        ["intensity (0–1)", "standard deviations", "|error|", "subject2"],
    ),
}


@pytest.mark.parametrize(
    ("plane", "sides"), [("axial", "LR"), ("coronal", "LR"), ("sagittal", "PA"), ("image", "")]
)
def test_the_subject_s_left_is_marked_at_the_left(plane: str, sides: str) -> None:
    """As slices are cut; posterior of sagittal ones. Photographs have no sides."""
    figure = figures.reconstructions(pairs(1), "x", plane)
    for axes in figure.axes[:3]:
        marks = {text.get_text(): text.get_position()[0] for text in axes.texts}
        assert sorted(marks, key=lambda side: marks[side]) == list(sides)


@pytest.mark.parametrize("name", DRAWN)
def test_figures_say_their_units_and_a_legend_covers_no_panel(name: str) -> None:
    figure, buffer = DRAWN[name][0](), io.BytesIO()
    figure.savefig(buffer, format="png", dpi=40)
    assert np.asarray(Image.open(buffer).convert("L")).std() > 5
    said = "\n".join(text.get_text() for text in figure.findobj(Text) if isinstance(text, Text))
    assert all(words in said for words in DRAWN[name][1])
    for legend in figure.legends:
        top = legend.get_window_extent().y1
        assert all(axes.get_tightbbox().y0 >= top for axes in figure.axes)


def test_errors_and_deviations_stand_in_rows_and_columns_on_one_scale() -> None:
    figure = DRAWN["error bars"][0]()
    figure.draw_without_rendering()
    pictures = [axes for axes in figure.axes if axes.images]
    assert pictures[2].images[0].get_clim() == pictures[3].images[0].get_clim()
    places = np.array([axes.get_position().bounds for axes in pictures]).reshape(3, 5, 4)
    np.testing.assert_allclose(places[..., 1], places[:, :1, 1].repeat(5, 1), atol=1e-6)
    np.testing.assert_allclose(places[..., 0], places[:1, :, 0].repeat(3, 0), atol=1e-6)


@pytest.mark.parametrize(("low", "labels"), [(0.3, "0.3 0.4 0.5 0.6 0.7 0.8 0.9 1"),
                                             (0.1, "0.1 0.2 0.5 1")])  # fmt: skip
def test_a_ratio_is_labelled_in_plain_decimals(low: float, labels: str) -> None:
    axes = Figure().subplots()
    axes.semilogy([0, 1], [low, 1.0])
    plain_decimals(axes.yaxis)
    bottom, top = axes.get_ylim()
    ticks = [tick for tick in axes.get_yticks() if bottom <= tick <= top]
    assert axes.yaxis.get_major_formatter().format_ticks(ticks) == labels.split()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_holds_every_pixel_in_its_place(channels: int) -> None:
    pictures = images(5, channels)
    grid = image_grid(pictures, columns=3, gap=2)
    assert grid.shape == (2 * 16 + 2, 3 * 16 + 4, 3) and grid.dtype == np.uint8
    fifth = (pictures[4].expand(3, 16, 16) * 255).round().permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(grid[18:, 18:34], fifth)
    assert (grid[18:, 36:] == 255).all() and (grid[16:18] == 255).all()
