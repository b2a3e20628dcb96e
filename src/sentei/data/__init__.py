"""Data sets in three splits: known ones, folders, and a user's own batches."""

from sentei.data.dataset import Data
from sentei.data.load import load_data
from sentei.data.splits import Augment, Split

__all__ = ["Augment", "Data", "Split", "load_data"]
