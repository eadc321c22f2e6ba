"""The report of a run: complete, escaped, self-contained; the slices it singles out; the table."""

import math
import re
from collections.abc import Callable
from html import escape

import pytest
import torch
from torch import Tensor

from pipeline.evaluation.networks import Networks
from pipeline.evaluation.pairs import KEPT, Pair, Tally
from pipeline.evaluation.report import About
from pipeline.evaluation.scores import note, notes_of, table
from pipeline.metrics.catalogue import GROUPS, HEADLINE
from pipeline.metrics.fidelity import psnr
from pipeline.metrics.statistics import Interval, single

HOSTILE = "<img src='http://example.org/x.png'><script>alert('x')</script>{{ 7 * 7 }}"
METRICS = [metric for group in GROUPS.values() for metric in group]


def images(count: int) -> Tensor:
    return torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(0))


def noisy(clean: Tensor, sizes: list[float]) -> Tensor:
    """Images (n,C,H,W) with an error of one size each."""
    return (clean + torch.tensor(sizes)[:, None, None, None]).clamp(0, 1)


def test_extremes_are_the_best_and_the_worst_slices_of_different_subjects() -> None:
    tally, clean = Tally(Networks(), image_set=True), images(3)
    for number in range(KEPT + 3):
        made = noisy(clean, [0.3 - 0.01 * number, 0.05 + 0.01 * number, 0.15])
        tally.add({"subject": f"s{number}"}, {}, clean, made, [10, 20, 30])
    assert [pair.subject for pair in tally.worst] == [f"s{n}" for n in range(KEPT)]
    assert [pair.subject for pair in tally.best] == [f"s{n}" for n in range(KEPT)]
    assert {pair.place for pair in tally.worst} == {10}
    assert {pair.place for pair in tally.best} == {20}
    best = tally.best[0]
    assert best.psnr == psnr(best.image[None], best.reconstruction[None]).item()
    assert torch.equal(best.image, clean[1])


def test_a_slice_without_brain_is_no_extreme() -> None:
    tally, clean = Tally(Networks()), images(3)
    clean[0] = 0
    tally.add({"subject": "s"}, {}, clean, noisy(clean, [0.3, 0.2, 0.1]), [1, 2, 3])
    assert [pair.place for pair in tally.best] == [3]
    assert [pair.place for pair in tally.worst] == [2]


@pytest.mark.parametrize("image_set", [False, True])
def test_an_empty_surround_makes_no_slice_the_best_but_of_photographs(image_set: bool) -> None:
    """The first slice has little brain and a large error in it, the second the opposite."""
    clean = torch.zeros(2, 1, 16, 16)
    clean[0, :, :2, :2], clean[1] = 0.5, 0.5
    made = clean + (clean > 0) * torch.tensor([0.2, 0.1])[:, None, None, None]
    tally = Tally(Networks(), image_set)
    tally.add({"subject": "s", "family": "f"}, {}, clean, made, [0, 1])
    [best], [worst] = tally.best, tally.worst
    assert (best.place, worst.place) == ((0, 1) if image_set else (1, 0))
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


def test_the_page_asks_nothing_of_the_network(page_writer: Callable[..., str]) -> None:
    html = page_writer()
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(", html)
    sources = re.findall(r"\b(?:src|href|action|data)=\"([^\"]*)\"", html)
    assert sources and all(source.startswith(("data:image/png;base64,", "#")) for source in sources)
    assert "default-src 'none'" in html[:2000]


def test_what_comes_from_files_cannot_become_html(page_writer: Callable[..., str]) -> None:
    html = page_writer(HOSTILE)
    assert html.count("<script>") == 1 and "alert('x')" not in html
    assert escape(HOSTILE).replace("&#x27;", "&#39;") in html  # shown as it is
    assert "a &amp; b" in html


@pytest.mark.parametrize("channels", [1, 3])
def test_the_page_shows_pictures_scores_and_how_to_repeat(
    page_writer: Callable[..., str], channels: int
) -> None:
    html = page_writer(channels=channels)
    cards = re.findall(r'<div class="card">(.*?)</div>', html, re.DOTALL)
    assert len(cards) == len(HEADLINE)
    (blur,) = (card for card in cards if "blur effect" in card)
    assert "0.500" in blur and "[0.250, 0.750]" in blur and "data 0.341" in blur
    assert "data" in blur and "better near the data" in blur
    rows = re.findall(r'<tr><th scope="row">(.*?)</th>', html)
    assert rows == [metric.label.replace("'", "&#39;") for metric in METRICS]
    assert html.count("data-pair>") == 3 + 1 + 1
    assert "p01, slice 40: original" in html and "slice 42, 22.00 dB" in html
    for part in ("kernels", "spectra", "samples", "repeat", "extremes"):
        assert f'id="{part}"' in html and f'href="#{part}"' in html
    assert 'id="calibration"' not in html  # it has no such figure
    assert "no weights for p01" in html and "simulated" in html
    texts = re.findall(r"<img [^>]*?alt=\"([^\"]*)\"", html)
    assert all(texts) and len(texts) == html.count("<img ")


def test_a_page_without_samples_has_no_such_part(page_writer: Callable[..., str]) -> None:
    clean = images(1)
    pair = Pair("p", None, 1.0, clean[0], clean[0])
    html = page_writer(pairs=[pair], best=[pair], worst=[pair], samples=None, data=None)
    assert 'id="samples"' not in html and "#samples" not in html
    assert "slice None" not in html


def test_the_same_scores_give_the_same_page(page_writer: Callable[..., str]) -> None:
    assert page_writer() == page_writer()


def test_the_table_fits_a_terminal_of_eighty_columns() -> None:
    every = [metric for group in GROUPS.values() for metric in group]
    keys = {metric.key for metric in every} | {m.data for m in every if isinstance(m.data, str)}
    wide: Interval = {"mean": -1234.5678, "low": -1234.5678, "high": -1234.5678}
    small: Interval = {"mean": -4.417, "low": -4.481, "high": -4.341}
    nats = {"rate": wide}
    assert max(map(len, table(dict.fromkeys(keys, small) | nats).splitlines())) <= 80


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


def test_the_mean_slice_is_the_floor_beside_scores() -> None:
    metrics: dict[str, Interval] = {
        "psnr": single(25.4), "ssim": single(0.9), "rate": single(800.0),
        "floor_psnr": single(16.03), "floor_ssim": single(0.41),
    }  # fmt: skip
    lines = table(metrics).splitlines()
    assert [line.split()[-1] for line in lines[:5]] == [
        "floor", "Reconstructions", "16.03", "0.410", "800",
    ]  # fmt: skip
    assert not notes_of(metrics)


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
