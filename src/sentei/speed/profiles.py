"""Where the time of a pass goes: seconds of each module, by the profiler of the runtime.

Runtimes fuse and rename operations. What they name is traced back to the operation of the ONNX file that holds a
module's weight; what belongs to no such module (additions, pooling, changes of layout) is gathered under "".
"""

from __future__ import annotations

import ast
import json
import re
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from torch import nn

from sentei.extras import required

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operations of ONNX that hold the weights of a layer."""
AFTER = ("BatchNormalization", "Clip", "Elu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Relu", "Sigmoid",
         "Tanh")  # fmt: skip
"""Operations that a runtime fuses into the one before them, which then may be named after what they put out."""
DECORATION = re.compile(r"^fused |_kernel_time$|_nchwc$|_token_\d+$")


class Profile(ABC):
    """Passes that are watched: `once` makes one, `seconds` tells about all of them."""

    @abstractmethod
    def once(self) -> None:
        """One pass."""

    @abstractmethod
    def seconds(self) -> dict[str, np.ndarray]:
        """Seconds of each module, one for each pass but the first, which warms up; "" is everything else."""


class EagerProfile(Profile):
    """Hooks around modules, and the clock."""

    def __init__(
        self, model: nn.Module, once: Callable[[], object], layers: Collection[str], wait: Callable[[], None] | None
    ) -> None:
        self._once, self._wait = once, wait
        self._begun: dict[str, float] = {}
        self._spent: dict[str, list[float]] = {name: [] for name in ["", *layers]}
        modules = dict(model.named_modules())
        for name in layers:
            modules[name].register_forward_pre_hook(lambda *_, name=name: self._begin(name))
            modules[name].register_forward_hook(lambda *_, name=name: self._end(name))

    def _now(self) -> float:
        if self._wait is not None:
            self._wait()
        return time.perf_counter()

    def _begin(self, name: str) -> None:
        self._begun[name] = self._now()

    def _end(self, name: str) -> None:
        self._spent[name][-1] += self._now() - self._begun[name]

    def once(self) -> None:
        for spent in self._spent.values():
            spent.append(0.0)
        started = self._now()
        self._once()
        whole = self._now() - started
        self._spent[""][-1] = whole - sum(spent[-1] for name, spent in self._spent.items() if name)

    def seconds(self) -> dict[str, np.ndarray]:
        return {name: np.array(spent[1:]) for name, spent in self._spent.items()}


class OnnxRuntimeProfile(Profile):
    """ONNX Runtime's own profiler, which writes a file when the session ends."""

    def __init__(
        self, payload: bytes, layers: Collection[str], session: Any, feed: Mapping[str, Any], folder: TemporaryDirectory
    ) -> None:
        self._owner, self._session, self._feed, self._folder = Owner(payload, layers), session, feed, folder
        self._passes = 0

    def once(self) -> None:
        self._session.run(None, self._feed)
        self._passes += 1

    def seconds(self) -> dict[str, np.ndarray]:
        events = json.loads(Path(self._session.end_profiling()).read_text())
        self._folder.cleanup()
        spent: dict[str, list[float]] = defaultdict(list)
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                spent[event["name"]].append(1e-6 * event["dur"])
        return _by_module(self._owner, spent, self._passes)


class OpenVinoProfile(Profile):
    """OpenVINO's counters, which it keeps for the last pass."""

    def __init__(self, payload: bytes, layers: Collection[str], request: Any) -> None:
        self._owner, self._request = Owner(payload, layers), request
        self._spent: dict[str, list[float]] = defaultdict(list)
        self._passes = 0

    def once(self) -> None:
        self._request.infer(share_outputs=True)
        self._passes += 1
        for counted in self._request.get_profiling_info():
            self._spent[counted.node_name].append(counted.real_time.total_seconds())

    def seconds(self) -> dict[str, np.ndarray]:
        return _by_module(self._owner, self._spent, self._passes)


def _by_module(owner: Owner, spent: Mapping[str, Sequence[float]], passes: int) -> dict[str, np.ndarray]:
    """Sums over what belongs to one module, without the first pass."""
    out: dict[str, np.ndarray] = {name: np.zeros(passes - 1) for name in ["", *owner.layers]}
    for name, times in spent.items():
        whole = len(times) // passes * passes  # an operation that does not run in every pass is left out
        out[owner.of(name)] += np.array(times[:whole]).reshape(passes, -1).sum(1)[1:]
    return out


class Owner:
    """Which module an operation of a runtime belongs to."""

    def __init__(self, payload: bytes, layers: Collection[str]) -> None:
        graph = required("onnx", "export", "ONNX").load_from_string(payload).graph
        self.layers = tuple(layers)
        weights = {tensor.name for tensor in graph.initializer}
        self._nodes = {node.name: node for node in graph.node}
        self._makers = {out: node for node in graph.node for out in node.output}
        self._module = {node.name: self._holder(node, weights) for node in graph.node if node.op_type in WEIGHTED}

    def of(self, name: str) -> str:
        """The module's name; "" for an operation of none."""
        name = self._plain(name.partition("/")[0])
        if name in self._nodes:
            return self._module.get(name, "")
        node = self._makers.get(name)
        while node is not None and node.name not in self._module and node.op_type in AFTER:
            node = self._makers.get(node.input[0])
        return "" if node is None else self._module.get(node.name, "")

    def _plain(self, name: str) -> str:
        """The name of an operation or of what it puts out, without what the runtime adds."""
        while name not in self._nodes and name not in self._makers and DECORATION.search(name):
            name = DECORATION.sub("", name)
        return name

    def _holder(self, node: Any, weights: set[str]) -> str:
        """By the weight's name, and where the exporter computed it anew by the modules it was in."""
        held = [name.rpartition(".")[0] for name in node.input if name in weights]
        told = next((p.value for p in node.metadata_props if p.key == "pkg.torch.onnx.name_scopes"), "[]")
        return next((name for name in [*held, *reversed(ast.literal_eval(told))] if name in self.layers), "")
