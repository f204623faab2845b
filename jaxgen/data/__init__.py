"""Data sets: `load(name, split)`, `DataConfig` and `Dataset`; one file for each kind of data."""

from jaxgen.data.dataset import Batch, Dataset
from jaxgen.data.loading import DataConfig, load

__all__ = ["Batch", "DataConfig", "Dataset", "load"]
