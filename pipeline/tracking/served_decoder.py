"""The decoder as MLflow serves it: latents in, images out.

MLflow keeps a copy of this file beside the package and runs it to load the model ("models from
code"), so that nothing is pickled. It needs torch and numpy, and nothing of this project.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


class ServedDecoder(PythonModel):
    """decoder.pt2 of the package that was logged with the model."""

    def load_context(self, context: Any) -> None:
        path = Path(context.artifacts["package"]) / "decoder.pt2"
        self.decoder = torch.export.load(path).module()

    # A type hint would have MLflow check the input against it, in place of the signature.
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """Latents (B,L) -> images (B,C,H,W) in [0,1], float32 arrays."""
        latent = np.ascontiguousarray(model_input, dtype=np.float32)
        with torch.no_grad():
            return self.decoder(torch.from_numpy(latent)).numpy()


set_model(ServedDecoder())
