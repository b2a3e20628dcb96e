"""How each layer of a network is set up, in words, to name what differs between two networks of the same shapes."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

SIZES = {
    "in_channels", "out_channels", "in_features", "out_features", "in1_features", "in2_features", "num_features",
    "normalized_shape", "num_channels", "num_parameters", "num_embeddings", "embedding_dim", "input_size",
    "hidden_size", "groups",
}  # fmt: skip
"""A cut changes these."""
TRAINING = {"momentum", "inplace", "p"}
"""These do not change what comes out in eval mode."""


def settings(model: nn.Module) -> dict[str, str]:
    """Class and plain constants of each layer, as `Conv2d(stride=(2, 2), ...)`, without what a cut changes."""
    return {name: f"{type(m).__name__}({', '.join(_constants(m))})" for name, m in model.named_modules()}


def _constants(module: nn.Module) -> list[str]:
    named = {c: getattr(module, c, None) for c in getattr(module, "__constants__", ()) if c not in SIZES | TRAINING}
    return [f"{c}={v!r}" for c, v in named.items() if isinstance(v, int | float | str | tuple) and len(repr(v)) < 100]


def first_change(before: Mapping[str, str], now: Mapping[str, str]) -> str | None:
    """The first layer that is set up in another way, in words."""
    for name in [*before, *now]:
        a, b = before.get(name, "absent"), now.get(name, "absent")
        if a != b:
            return f"{name or 'the network'} was {a} and is {b}"
    return None
