"""Progress of long work: data_prep's."""

from data_prep.common.progress import Reporter

__all__ = ["Reporter"]
