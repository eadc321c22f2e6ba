"""Progress of long work: data_prep's."""

from data_prep import Reporter

__all__ = ["Reporter"]
