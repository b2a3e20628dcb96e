"""Writes a folder as the first version did."""

import hashlib
import json
from pathlib import Path

import safetensors.torch
from torch import nn

from sentei import Plan


def save(small: nn.Module, plan: Plan, folder: Path) -> None:
    payload = safetensors.torch.save({n: t.contiguous() for n, t in small.state_dict().items()})
    plain = plan.to_plain()
    for late in ("places", "macs", "outputs"):
        del plain["structure"][late]
    record = {
        "format": "sentei.pruned",
        "version": 1,
        "source": None,
        "weights": {
            "file": "model.safetensors",
            "bytes": len(payload),
            "sha256": hashlib.sha256(payload).hexdigest(),
        },
        "plan": plain,
    }
    record["sha256"] = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
    (folder / "model.safetensors").write_bytes(payload)
    (folder / "plan.json").write_text(json.dumps(record, indent=1))
