"""The house: imports run downwards only (design, section 3)."""

import ast
from collections.abc import Iterator
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


def _name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(path: Path) -> Iterator[str]:
    """Modules of this project that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            module = node.module or ""
            submodules = [f"{module}.{alias.name}" for alias in node.names]
            names = [
                name if (ROOT / (name.replace(".", "/") + ".py")).exists()
                or (ROOT / name.replace(".", "/") / "__init__.py").exists()
                else module
                for name in submodules
            ]  # fmt: skip
        else:
            continue
        yield from (name for name in names if name.split(".")[0] in ("pipeline", "data_prep"))


def _room(module: str) -> str:
    rooms = [room for room in FLOORS if f"{module}.".startswith(f"{room}.")]
    assert rooms, f"{module} stands on no floor of the house: see FLOORS"
    return max(rooms, key=len)


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_imports_run_downwards_only(path: Path) -> None:
    name = _name(path)
    if not name.startswith("pipeline."):
        return
    room = _room(name)
    for imported in _imports(path):
        if imported.split(".")[0] == "pipeline" and _room(imported) != room:
            assert FLOORS[_room(imported)] < FLOORS[room], f"{name} imports {imported}"


# Of the preparation's insides the pipeline reads what decides how a volume becomes slices.
SEAM = {
    "data_prep",
    "data_prep.__main__",
    "data_prep.config",
    "data_prep.executors.local",
    "data_prep.flags",
    "data_prep.same_scan",
    "data_prep.sources.simulated.marking",
    "data_prep.volume.headers",
}


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_the_pipeline_sees_the_face_of_the_preparation_and_the_furniture_alone(path: Path) -> None:
    name = _name(path)
    for imported in _imports(path):
        assert imported != name.split(".")[0], f"{name} imports the face of its own package"
        if name.startswith("data_prep"):
            assert not imported.startswith("pipeline"), f"{name} imports {imported}"
        elif imported.startswith("data_prep"):
            allowed = imported in SEAM or imported.startswith("data_prep.common")
            assert allowed, f"{name} imports {imported}: use the face"
        if name.startswith("data_prep.common"):
            assert imported.startswith("data_prep.common"), f"{name} imports {imported}"


def test_there_are_no_circles() -> None:
    graph = {_name(path): set(_imports(path)) for path in MODULES}

    def reach(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, f"circle: {' -> '.join((*trail, module))}"
        if module in finished:
            return
        for imported in graph.get(module, set()):
            reach(imported, (*trail, module))
        finished.add(module)

    finished: set[str] = set()
    for module in graph:
        reach(module, ())


MLFLOW = {
    "data_prep.common.tracking",
    "pipeline.tracking.registry",
    "pipeline.tracking.served_decoder",
}


def test_mlflow_is_touched_in_its_modules_alone() -> None:
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] == "mlflow" for name in names):
                assert _name(path) in MLFLOW
