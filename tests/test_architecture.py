"""The house: imports run downwards only (design, section 3)."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted([*(ROOT / "pipeline").rglob("*.py"), *(ROOT / "data_prep").rglob("*.py")])

# The longest prefix of a module's name decides its floor; a room imports from itself and below.
FLOORS = {
    "pipeline.errors": 0.0,
    "pipeline.randomness": 0.0,
    "pipeline.files": 0.5,
    "pipeline.distributed": 0.5,
    "pipeline.figures": 0.7,
    "pipeline.tracking": 1.0,
    "pipeline.blur": 1.0,
    "pipeline.models": 1.0,
    "pipeline.metrics": 1.5,
    "pipeline.data": 2.0,
    "pipeline.losses": 2.0,
    "pipeline.package": 2.5,
    "pipeline.package.export": 6.0,
    "pipeline.analysis": 3.0,
    "pipeline.config": 3.0,
    "pipeline.fits": 3.7,
    "pipeline.training": 4.0,
    "pipeline.evaluation": 5.0,
    "pipeline.comparison": 7.0,
    "pipeline.cli": 8.0,
    "pipeline.__main__": 9.0,
}


# Of the preparation's insides the pipeline reads what decides how a volume becomes slices.
SEAM = {
    "data_prep",
    "data_prep.__main__",
    "data_prep.config",
    "data_prep.executors.local",
    "data_prep.sources.simulated",
    "data_prep.volume.plausibility",
    "data_prep.volume.verify",
}


MLFLOW = {
    "data_prep.common.tracking",
    "pipeline.tracking.registry",
    "pipeline.tracking.served_decoder",
}


def _name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {_name(path): path for path in MODULES}


def _imports(path: Path) -> Iterator[str]:
    """Modules that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            for alias in node.names:
                module = f"{node.module}.{alias.name}"
                yield module if module in NAMES else str(node.module)


def _room(module: str) -> str:
    rooms = [room for room in FLOORS if f"{module}.".startswith(f"{room}.")]
    assert rooms, f"{module} stands on no floor of the house: see FLOORS"
    return max(rooms, key=len)


@pytest.mark.parametrize("name", NAMES)
def test_imports_run_downwards_only(name: str) -> None:
    """Between the floors of the pipeline, and from the pipeline to the preparation."""
    package, _, rest = name.partition(".")
    for imported in _imports(NAMES[name]):
        assert imported.split(".")[0] != "mlflow" or name in MLFLOW
        if imported.split(".")[0] not in ("pipeline", "data_prep"):
            continue
        assert imported != package, f"{name} imports the face of its own package"
        if name.startswith("data_prep.common"):
            assert imported.startswith("data_prep.common"), f"{name} imports {imported}"
        elif package == "data_prep":
            assert not imported.startswith("pipeline"), f"{name} imports {imported}"
        elif imported.startswith("data_prep"):
            allowed = imported in SEAM or imported.startswith("data_prep.common")
            assert allowed, f"{name} imports {imported}: use the face"
        elif rest and _room(imported) != _room(name):
            assert FLOORS[_room(imported)] < FLOORS[_room(name)], f"{name} imports {imported}"


def test_there_are_no_circles() -> None:
    graph = {name: set(_imports(path)) & set(NAMES) - {name} for name, path in NAMES.items()}
    tuple(TopologicalSorter(graph).static_order())
