"""Both packages under one name, and `sharp-vae` for all commands.

A `pipeline.py` or `data_prep.py` in the folder where Python starts would hide ours: they are loaded
here from beside this folder, first. Every name of their faces is a name of this package:

    >>> import sharp_vae
    >>> sharp_vae.PrepareConfig().plane, sharp_vae.ModelConfig().width
    ('axial', 24)
"""

import sys
from pathlib import Path
from typing import Any

_ROOT = str(Path(__file__).parents[1])
sys.path.insert(0, _ROOT)
import data_prep  # noqa: E402
import pipeline  # noqa: E402

sys.path.remove(_ROOT)
if {str(Path(str(face.__file__)).parents[1]) for face in (data_prep, pipeline)} != {_ROOT}:
    raise ImportError("another data_prep or pipeline is loaded: import sharp_vae before it")


def __getattr__(name: str) -> Any:
    return getattr(pipeline if name in dir(pipeline) else data_prep, name)


def main() -> int:
    from pipeline.cli import main as command

    return command()
