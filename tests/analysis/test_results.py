"""A folder a question: nothing is lost, an interrupted command goes on, nobody is replaced."""

import json
from pathlib import Path

import pytest

from pipeline.analysis.options import AnomalyOptions, LesionsOptions, ReconstructOptions
from pipeline.analysis.results import answered, answering, folder_of, image_name, question_of
from pipeline.errors import InputError


def ask(**options: object) -> tuple[ReconstructOptions, dict]:
    chosen = ReconstructOptions(package="demo", store="s", **options)  # type: ignore[arg-type]
    return chosen, question_of(chosen, store="digest")


def folder(**options: object) -> Path:
    return folder_of(ask(**options)[0], "reconstructions", "s", ask(**options)[1], "acceleration")


def test_a_folder_is_named_by_what_decides_its_results(work: Path) -> None:
    home = work / "reconstructions/s"
    assert folder() == home / "demo-acceleration-4"
    assert folder(acceleration=6.0, noise=0.05, mask="a/m.npy") == (
        home / "demo-acceleration-6-mask-m.npy-noise-0.05"
    )
    assert folder(output="x") == Path("x")
    lesions = LesionsOptions(package="models:/x/1", store="s", contrasts=(-0.4, 0.2))
    found = folder_of(lesions, "lesions", "s", question_of(lesions))
    assert found == work / "lesions/s/1-contrasts--0.4,0.2"


def test_a_package_of_the_same_name_elsewhere_has_another_folder(work: Path) -> None:
    with answering(folder(), ask()[1]) as draft:
        (draft / "x").touch()
    other = AnomalyOptions(package="elsewhere/demo-acceleration-4", image="i")
    found = folder_of(other, "reconstructions", "s", question_of(other))
    assert found.parent == folder().parent and found != folder()
    assert folder() == folder(seed=0), "the same options are the same question"


def test_hcp_s_files_are_named_by_their_subject(tmp_path: Path) -> None:
    """100307/T1w/T1w.nii.gz and 100308/T1w/T1w.nii.gz have one name."""
    paths = [tmp_path / f"{subject}/T1w/T1w.nii.gz" for subject in ("100307", "100308")]
    for path in paths:
        path.parent.mkdir(parents=True)
        path.touch()
    (tmp_path / "100307/T1w/b[1].nii").touch()
    assert [image_name(path) for path in paths] == ["100307-T1w", "100308-T1w"]
    assert image_name(tmp_path / "100307/T1w/b[1].nii") == "b[1]"


def test_earlier_results_stay_until_the_new_ones_are_there(tmp_path: Path) -> None:
    out, (_, first), (_, second) = tmp_path / "out", ask(), ask(seed=1)
    with answering(out, first) as draft:
        (draft / "a").write_text("first")
    assert answered(out, first) and not answered(out, second)
    with pytest.raises(KeyboardInterrupt, match="goes on"), answering(out, second) as draft:
        (draft / "b").write_text("second")
        raise KeyboardInterrupt
    assert {path.name for path in out.iterdir()} == {"a", "question.json"}
    assert answered(out, first)
    with answering(out, second) as draft:
        assert (draft / "b").read_text() == "second"
    assert {path.name for path in out.iterdir()} == {"b", "question.json"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_another_question_starts_anew(tmp_path: Path) -> None:
    with pytest.raises(ValueError), answering(tmp_path / "out", ask()[1]) as draft:
        (draft / "p04").mkdir()
        raise ValueError
    with answering(tmp_path / "out", ask(seed=1)[1]) as draft:
        assert not (draft / "p04").exists()
        busy = pytest.raises(InputError, match="another process is at work")
        with busy, answering(tmp_path / "out", ask()[1]):
            raise AssertionError


def test_a_user_s_own_files_are_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "scores.csv").write_text("student,grade\n")
    with pytest.raises(InputError, match=r"holds scores\.csv"), answering(tmp_path, ask()[1]):
        raise AssertionError
    out = tmp_path / "out"
    with answering(out, ask()[1]) as draft:
        (draft / "a").touch()
    (out / "notes.txt").touch()
    with pytest.raises(InputError, match=r"holds notes\.txt"), answering(out, ask(seed=1)[1]):
        raise AssertionError
    assert json.loads((out / "question.json").read_text())["question"] == ask()[1]
