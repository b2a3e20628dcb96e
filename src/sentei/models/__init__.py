"""The papers' networks, and models by reference."""

from sentei.models.reference import ZOO, build_model, input_shape_of
from sentei.models.weights import load_weights

__all__ = ["ZOO", "build_model", "input_shape_of", "load_weights"]
