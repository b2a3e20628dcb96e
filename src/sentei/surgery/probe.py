"""A fingerprint of what a network computes: outputs on inputs that anyone can make again.

Shapes, wiring and costs do not tell another pooling, padding, eps or activation. So a saved network answers one or two
random images, and whoever loads it compares. It is asked in float64, where processors and libraries agree to some
1e-14, so that the comparison can be strict; in its own precision where it cannot run in float64.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sentei.graph.inputs import Inputs, cast
from sentei.graph.outputs import output_tensors
from sentei.graph.part import Forward, part_of
from sentei.plan.schema import Count, InputSpec, Strict

Precision = Literal["float64", "own"]
PRECISIONS: tuple[Precision, ...] = ("float64", "own")
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}
MIXED, LOW = 1e-4, 5e-2
"""Where a float64 network computes in float32 in between, and in half precision."""
IMAGES, BRIGHTER = 2, 10.0
"""The second image has values that are so many times as large: what saturates or clips shows there."""
AFFORDABLE = 10**10
"""MACs of a probe, above which smaller images are tried."""
MOST = 2**28
"""Numbers in an input, above which none is made."""
SMALL, NOISE = 4096, 0.1
"""Parameters of at most so many numbers are stirred, by so much."""
SKETCHES = 4


class Output(Strict):
    """One output tensor: its shape, its norm, and its products with random vectors, in which every element counts."""

    shape: list[Count]
    norm: float
    sketch: list[float]


class Probe(Strict):
    inputs: InputSpec
    precision: Precision
    stirred: bool
    """Whether the copy's scales and biases were changed a little, at random, so that none of them is zero."""
    tolerance: float
    """Largest difference of a product, relative to the norm of the output."""
    outputs: list[Output]


class Silent(Exception):
    """The answers of a network say nothing that could be compared."""


class Unprobed(Strict):
    """Why a network could not be asked."""

    reason: str


def probe(
    model: nn.Module, inputs: Inputs, macs: int | None = None, forward: Forward | None = None
) -> Probe | Unprobed:
    """Ask the network, in eval mode, on a copy on the CPU: the model is left as it is.

    `macs` is what the inputs cost, as far as that is known. `forward` runs the part that is asked.
    """
    failed: list[Exception] = []
    for stirred, precision, tried in product((True, False), PRECISIONS, _candidates(inputs, macs)):
        try:
            outputs, tolerance = _answers(model, tried, precision, stirred, forward, twice=True)
            _check_telling(outputs)
        except Exception as error:  # the model's own code may raise anything
            failed.append(error)
            continue
        found = [_sketched(i, t) for i, t in enumerate(outputs)]
        return Probe(inputs=tried.spec(), precision=precision, stirred=stirred, tolerance=tolerance, outputs=found)
    last = failed[-1]
    if isinstance(last, Silent):
        return Unprobed(reason=str(last))
    return Unprobed(reason=f"it does not run on random inputs: {type(last).__name__}: {last}")


def differences(model: nn.Module, expected: Probe, forward: Forward | None = None) -> str | None:
    """What the model answers otherwise, in words; None if it agrees. Raises what the model raises."""
    inputs = Inputs.from_spec(expected.inputs)
    outputs, _ = _answers(model, inputs, expected.precision, expected.stirred, forward)
    shapes = [tuple(o.shape) for o in expected.outputs], [tuple(t.shape) for t in outputs]
    if shapes[0] != shapes[1]:
        return f"outputs of shapes {shapes[1]} instead of {shapes[0]}"
    worst = 0.0
    for i, (output, wanted) in enumerate(zip(outputs, expected.outputs, strict=True)):
        found = _sketched(i, output)
        pairs = [(found.norm, wanted.norm), *zip(found.sketch, wanted.sketch, strict=True)]
        worst = max(worst, *(_relative(a, b, wanted.norm) for a, b in pairs))
    if worst <= expected.tolerance:
        return None
    return f"outputs that differ by {worst:.2g} (relative) where at most {expected.tolerance:g} is rounding"


def _relative(a: float, b: float, scale: float) -> float:
    if a == b:
        return 0.0
    return abs(a - b) / scale if scale and math.isfinite(a) else math.inf


# -- inputs


def _candidates(inputs: Inputs, macs: int | None) -> Iterator[Inputs]:
    """Smaller versions of the inputs that the model may take, then the inputs themselves."""
    tensors = output_tensors([inputs.args, dict(inputs.kwargs)])
    batch = min((t.shape[0] for t in tensors if t.ndim), default=0)
    few = batch not in (0, IMAGES) and all(t.ndim and t.shape[0] == batch for t in tensors)
    spec: Any = inputs.spec()
    fewer = _resized(spec, lambda shape: [IMAGES, *shape[1:]]) if few else spec
    cost = (macs or 0) * (IMAGES / batch if few else 1)
    halvings = math.ceil(math.log(max(cost / AFFORDABLE, 1), 4))
    if halvings:
        yield Inputs.from_spec(_resized(fewer, lambda shape: _halved(shape, halvings)))
    if few:
        yield Inputs.from_spec(fewer)
    yield inputs


def _halved(shape: list[int], times: int) -> list[int]:
    """Images smaller, and whatever else as it is."""
    return [*shape[:2], *(max(n >> times, min(n, 64)) for n in shape[2:])] if len(shape) >= 4 else shape


def _resized(spec: Any, change: Any) -> Any:
    if isinstance(spec, Mapping):
        return {k: change(v) if k == "tensor" else _resized(v, change) for k, v in spec.items()}
    return [_resized(v, change) for v in spec] if isinstance(spec, list) else spec


def uniform(seed: int, count: int) -> np.ndarray:
    """Numbers of mean 0 and variance 1, float64 [count], from the bits of PCG64, which no version of NumPy changes."""
    bits = np.random.PCG64(seed).random_raw(count)
    return ((bits >> np.uint64(11)) * 2.0**-53 - 0.5) * math.sqrt(12)


def _values(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Real tensors of these shapes: random where floating, zeros elsewhere."""
    seeds = iter(range(1, 2**31))

    def fill(x: Any) -> Any:
        if isinstance(x, Tensor):
            if not x.is_floating_point():
                return torch.zeros(x.shape, dtype=x.dtype)
            if x.numel() > MOST:
                raise ValueError(f"an input of {x.numel():,} numbers is too large to try")
            values = torch.from_numpy(uniform(next(seeds), x.numel())).reshape(x.shape)
            if x.ndim:
                values[1:IMAGES] *= BRIGHTER
            return values.to(x.dtype)
        if isinstance(x, Mapping):
            return {k: fill(v) for k, v in x.items()}
        return type(x)(fill(v) for v in x) if isinstance(x, (list, tuple)) else x

    return fill(inputs.args), fill(dict(inputs.kwargs))


# -- answers


class _Dtypes(TorchDispatchMode):
    """Notes the floating dtypes that are computed in."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.seen |= {t.dtype for t in tree_leaves(out) if isinstance(t, Tensor) and t.is_floating_point()}
        return out


def _answers(
    model: nn.Module,
    inputs: Inputs,
    precision: Precision,
    stirred: bool,
    forward: Forward | None,
    twice: bool = False,
) -> tuple[list[Tensor], float]:
    """Output tensors of a copy in eval mode, and the tolerance that the precisions on the way allow.

    With `twice` the copy is asked again: what it answers must not depend on what it saw before.
    """
    twin = copy.deepcopy(model).cpu().eval()
    if stirred:
        _stir(twin)
    args, kwargs = _values(inputs)
    if precision == "float64":
        twin, args, kwargs = twin.double(), cast(args, torch.float64), cast(kwargs, torch.float64)
    with torch.random.fork_rng(devices=[]), torch.no_grad(), torch.compiler.set_stance("force_eager"):
        torch.manual_seed(0)
        before = torch.get_rng_state()
        with _Dtypes() as dtypes:
            outputs = output_tensors(part_of(twin, forward)(*args, **kwargs))
        if not torch.equal(before, torch.get_rng_state()):
            raise Silent("its outputs are random in eval mode")
        again = output_tensors(part_of(twin, forward)(*args, **kwargs)) if twice else outputs
        if not all(map(_close, outputs, again)):
            raise Silent("its outputs depend on what it saw before")
    return outputs, max((_tolerance(t, precision) for t in dtypes.seen), default=TOLERANCE[torch.float64])


def _close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-6, equal_nan=True)


def _tolerance(dtype: torch.dtype, precision: Precision) -> float:
    return MIXED if precision == "float64" and dtype == torch.float32 else TOLERANCE.get(dtype, LOW)


def _stir(model: nn.Module) -> None:
    """Add noise to small parameters, and to those that are zero: a scale that starts at zero hides a whole branch."""
    for i, p in enumerate(model.parameters()):
        if p.is_floating_point() and (p.numel() <= SMALL or not bool(p.any())):
            noise = torch.from_numpy(uniform(1_000_000 + i, p.numel())).reshape(p.shape)
            p.data += (NOISE * noise).to(p.dtype)


def _check_telling(outputs: list[Tensor]) -> None:
    if not all(bool(torch.isfinite(t).all()) for t in outputs):
        raise Silent("its outputs on random inputs are not finite")
    if not any(bool(t.any()) for t in outputs):
        raise Silent("its outputs on random inputs are all zero")


def _sketched(number: int, output: Tensor) -> Output:
    real = torch.view_as_real(output.resolve_conj()) if output.is_complex() else output
    flat = real.detach().double().reshape(-1).numpy()
    products = [float(uniform(1000 * (number + 1) + i, flat.size) @ flat) for i in range(SKETCHES)]
    return Output(shape=list(output.shape), norm=float(np.linalg.norm(flat)), sketch=products)
