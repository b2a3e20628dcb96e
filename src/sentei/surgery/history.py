"""Which cuts a network has been through."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
from torch import nn

from sentei.graph import Structure

CUTS = "_sentei_cuts"

History = tuple[tuple[str, str], ...]
"""Per cut, the oldest first: fingerprint of the graph, checksum of the units that stayed."""


def history(model: nn.Module) -> History:
    """The cuts that a network has been through, as far as it went through ours."""
    found: History = vars(model).get(CUTS, ())
    return found


def cut_once_more(model: nn.Module, structure: Structure, keep: Mapping[str, np.ndarray]) -> nn.Module:
    """Note a cut on the network that came out of it; copies and pickles of the network carry the note along."""
    setattr(model, CUTS, (*history(model), (structure.fingerprint, kept_digest(structure, keep))))
    return model


def as_dense(model: nn.Module) -> nn.Module:
    """Forget the cuts of a network that is to be the dense one from here on."""
    vars(model).pop(CUTS, None)
    return model


def kept_digest(structure: Structure, keep: Mapping[str, np.ndarray]) -> str:
    """A checksum of the units that stay; groups that stay whole do not count, named or not."""
    digest = hashlib.sha256()
    keep = structure.completed(keep)
    for name in sorted(keep):
        units = np.unique(np.asarray(keep[name], np.int64))
        if len(units) < structure.groups.get(name, (0, False))[0]:
            digest.update(f"{name} {len(units)} ".encode() + units.tobytes())
    return digest.hexdigest()
