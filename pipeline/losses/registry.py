"""From a term's name to the term."""

from pipeline.losses.base import ReconstructionTerm
from pipeline.losses.blur import Blur
from pipeline.losses.config import LikelihoodConfig
from pipeline.losses.gaussian import Gaussian

TERMS = {"blur": Blur, "gaussian": Gaussian}


def build_term(config: LikelihoodConfig) -> ReconstructionTerm:
    """The term that likelihood.term names. Raises ValueError, naming all, for another name."""
    if config.term not in TERMS:
        raise ValueError(f"likelihood.term must be one of {', '.join(TERMS)}, not {config.term!r}")
    return TERMS[config.term](config)
