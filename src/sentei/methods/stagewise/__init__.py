"""Stage-wise pruning (Zhang et al. 2020), and how well proxies foretell accuracy."""

from sentei.methods.stagewise.stagewise import Stagewise, reinitialise, resets
from sentei.methods.stagewise.supernet import Supernet

__all__ = ["Stagewise", "Supernet", "reinitialise", "resets"]
