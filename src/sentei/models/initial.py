"""Starting weights."""

from torch import nn


def he_init(model: nn.Module) -> None:
    """Normal weights of variance 2 / fan-in for every conv and linear layer (He et al. 2015), zero biases.

    >>> he_init(net)  # doctest: +SKIP
    """
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
