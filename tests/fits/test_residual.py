"""The law of the residuals is fitted to validation families, and calibrated on others of them."""

from types import SimpleNamespace

from pipeline.fits.residual import halves


def test_families_are_not_parted() -> None:
    def parted(*families: str) -> tuple[list[str], list[str]]:
        people = [SimpleNamespace(family=family) for family in families]
        one, other = halves(people)  # type: ignore[arg-type]
        return [e.family for e in one], [e.family for e in other]

    assert parted("a", "b", "a", "c", "d", "e") == (["a", "b", "a", "c"], ["d", "e"])
    assert parted("a", "b", "a") == (["a", "a"], ["b"])
    assert parted("a", "a") == (["a", "a"], ["a", "a"])
