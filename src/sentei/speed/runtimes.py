"""Where a network runs: PyTorch itself, torch.compile, ONNX Runtime, OpenVINO. One class and one registry line each."""

from __future__ import annotations

import importlib.util
import io
import logging
import tempfile
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sentei.errors import ExportError
from sentei.extras import openvino_core, required
from sentei.graph.copying import rebuilt
from sentei.graph.inputs import Inputs
from sentei.graph.outputs import output_tensors
from sentei.speed.profiles import EagerProfile, OnnxRuntimeProfile, OpenVinoProfile, Profile
from sentei.train.passes import evaluating

Pass = Callable[[], Any]
"""One forward pass on inputs that are at hand."""
SHOWN = {"eager": "PyTorch", "compile": "torch.compile", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
"""What each runtime is called."""
LARGEST = 2**31 - 2**24
"""Bytes of weights that ONNX takes in one piece."""


@dataclass(frozen=True)
class Placed:
    """A network in a runtime: its pass, and passes that tell how long each of some modules takes (None where the
    runtime does not tell)."""

    once: Pass
    profile: Callable[[Collection[str]], Profile | None]


class Runtime(ABC):
    """A place where networks run.

    >>> once = RUNTIMES["onnxruntime"].prepare(model, torch.zeros(1, 3, 224, 224), threads=1)  # doctest: +SKIP
    >>> once()  # doctest: +SKIP
    """

    @abstractmethod
    def place(self, model: nn.Module, example: Any, *, threads: int = 1, device: str = "cpu") -> Placed:
        """This network, ready to run.

        `example` is a tensor, a tuple (by position) or a dict (by keyword), as for `trace`. A copy of the network runs,
        in evaluation mode; the network itself stays where and as it is. Raises ExportError if the runtime is not
        installed or does not take the network.
        """

    def prepare(self, model: nn.Module, example: Any, *, threads: int = 1, device: str = "cpu") -> Pass:
        """A forward pass of this network, ready to be called again and again; arguments and errors are `place`'s."""
        return self.place(model, example, threads=threads, device=device).once

    @abstractmethod
    def versions(self) -> dict[str, str]:
        """The packages that decide how fast it is."""


class Eager(Runtime):
    """PyTorch as it is."""

    def place(self, model: nn.Module, example: Any, *, threads: int = 1, device: str = "cpu") -> Placed:
        placed, args, kwargs = _placed(model, example, device)
        once = _torch_pass(placed, args, kwargs, threads, device)

        def profile(layers: Collection[str]) -> Profile:
            wait = None if device == "cpu" else partial(torch.cuda.synchronize, device)
            return EagerProfile(placed, once, layers, wait)

        return Placed(once, profile)

    def versions(self) -> dict[str, str]:
        return {"torch": str(torch.__version__)}


class Compile(Runtime):
    """torch.compile for the shapes of the example, otherwise with its default settings."""

    def place(self, model: nn.Module, example: Any, *, threads: int = 1, device: str = "cpu") -> Placed:
        placed, args, kwargs = _placed(model, example, device)
        # Two networks of one class run the same code: without dynamic=False the second is compiled for any width.
        once = _torch_pass(torch.compile(placed, dynamic=False), args, kwargs, threads, device)
        try:
            with _quiet():
                once()
        except Exception as error:  # the compiler raises whatever its passes raise
            raise ExportError(
                f"torch.compile refuses this network: {type(error).__name__}: {_first_line(error)}"
            ) from error
        return Placed(once, lambda layers: None)

    def versions(self) -> dict[str, str]:
        return {"torch": str(torch.__version__)}


class OnFiles(Runtime):
    """A runtime of ONNX files."""

    def place(self, model: nn.Module, example: Any, *, threads: int = 1, device: str = "cpu") -> Placed:
        self._check(device)
        payload, inputs = to_onnx(model, example), _numpy(example)
        return Placed(
            self.of_bytes(payload, inputs, threads, device),
            lambda layers: self.profile_of_bytes(payload, inputs, layers, threads, device),
        )

    @abstractmethod
    def of_bytes(self, payload: bytes, inputs: list[np.ndarray], threads: int = 1, device: str = "cpu") -> Pass:
        """A pass of a network that is ONNX already; inputs in the order of the file's."""

    @abstractmethod
    def profile_of_bytes(
        self, payload: bytes, inputs: list[np.ndarray], layers: Collection[str], threads: int = 1, device: str = "cpu"
    ) -> Profile | None:
        """Passes of such a network that tell how long each of these layers takes; None where it does not tell."""

    @abstractmethod
    def _check(self, device: str) -> Any:
        """What `of_bytes` needs; ExportError if it is not installed, or does not run on this device."""


class OnnxRuntime(OnFiles):
    """ONNX Runtime on a file of the dynamo exporter."""

    def of_bytes(self, payload: bytes, inputs: list[np.ndarray], threads: int = 1, device: str = "cpu") -> Pass:
        session = self._session(payload, threads, device)
        feed = _feed(session, inputs)
        return (lambda: session.run(None, feed)) if device == "cpu" else _bound(session, feed, device)

    def profile_of_bytes(
        self, payload: bytes, inputs: list[np.ndarray], layers: Collection[str], threads: int = 1, device: str = "cpu"
    ) -> Profile | None:
        if device != "cpu":  # what it tells there is how long launching took
            return None
        folder = tempfile.TemporaryDirectory(prefix="sentei-profile-", ignore_cleanup_errors=True)
        session = self._session(payload, threads, device, Path(folder.name) / "profile")
        return OnnxRuntimeProfile(payload, layers, session, _feed(session, inputs), folder)

    def _session(self, payload: bytes, threads: int, device: str, profile: Path | None = None) -> Any:
        ort, provider = self._check(device)
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, str(profile)
        return ort.InferenceSession(payload, options, providers=[provider])

    def _check(self, device: str) -> tuple[Any, Any]:
        ort = required("onnxruntime", "export", "ONNX Runtime")
        wanted = "CPUExecutionProvider" if device == "cpu" else "CUDAExecutionProvider"
        if wanted not in ort.get_available_providers():
            raise ExportError(f"this ONNX Runtime has no {wanted}: pip install onnxruntime-gpu, or take --device cpu")
        return ort, wanted if device == "cpu" else (wanted, {"device_id": _index(device)})

    def versions(self) -> dict[str, str]:
        return {"onnxruntime": str(required("onnxruntime", "export", "ONNX Runtime").__version__)}


class OpenVino(OnFiles):
    """OpenVINO on a file of the dynamo exporter, for latency."""

    def of_bytes(self, payload: bytes, inputs: list[np.ndarray], threads: int = 1, device: str = "cpu") -> Pass:
        request = self._request(payload, inputs, threads, device)
        return lambda: request.infer(share_outputs=True)

    def profile_of_bytes(
        self, payload: bytes, inputs: list[np.ndarray], layers: Collection[str], threads: int = 1, device: str = "cpu"
    ) -> Profile:
        return OpenVinoProfile(payload, layers, self._request(payload, inputs, threads, device, PERF_COUNT=True))

    def _request(self, payload: bytes, inputs: list[np.ndarray], threads: int, device: str, **more: Any) -> Any:
        ov, core = self._check(device), openvino_core()
        settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY",
                    "INFERENCE_PRECISION_HINT": "f32", **more}  # fmt: skip
        request = core.compile_model(core.read_model(io.BytesIO(payload)), "CPU", settings).create_infer_request()
        for port, x in zip(request.model_inputs, inputs, strict=True):
            request.set_tensor(port, ov.Tensor(np.ascontiguousarray(x)))
        return request

    def _check(self, device: str) -> Any:
        if device != "cpu":
            raise ExportError(f"OpenVINO is measured on the CPU only; got device {device!r}")
        return required("openvino", "openvino", "OpenVINO")

    def versions(self) -> dict[str, str]:
        return {"openvino": str(required("openvino", "openvino", "OpenVINO").__version__).partition("-")[0]}


RUNTIMES: dict[str, Runtime] = {
    "eager": Eager(),
    "compile": Compile(),
    "onnxruntime": OnnxRuntime(),
    "openvino": OpenVino(),
}


def runtime_of(name: str) -> Runtime:
    """The runtime of that name; ExportError with the names there are."""
    if name not in RUNTIMES:
        raise ExportError(f"there is no runtime {name!r}; expected one of {', '.join(RUNTIMES)}")
    return RUNTIMES[name]


def default_runtime() -> str:
    """`onnxruntime` where it and what writes its files are installed, else `eager`."""
    needed = ("onnxruntime", "onnx", "onnxscript")
    return "onnxruntime" if all(importlib.util.find_spec(name) for name in needed) else "eager"


def to_onnx(model: nn.Module, example: Any, dynamic: Mapping[str, Any] | tuple[Any, ...] | None = None) -> bytes:
    """A network as ONNX, by the dynamo exporter.

    `dynamic` is what `torch.onnx.export` takes as `dynamic_shapes`. Raises ExportError if the exporter refuses.
    """
    required("onnx", "export", "ONNX")
    required("onnxscript", "export", "ONNX")
    inputs = Inputs.real(example)
    dims = dict(dynamic) if isinstance(dynamic, Mapping) else dynamic
    with evaluating(model), _quiet() as told:
        try:
            program = torch.onnx.export(
                model, inputs.args, kwargs=dict(inputs.kwargs), dynamic_shapes=dims, dynamo=True, verbose=False
            )
        except Exception as error:  # the exporter raises whatever its passes raise
            raise ExportError(
                f"torch.onnx.export refuses this network: {type(error).__name__}: {_first_line(error)}"
            ) from error
    assert program is not None, told.getvalue()
    weights = sum(len(tensor.raw_data) for tensor in program.model_proto.graph.initializer)
    if weights > LARGEST:
        raise ExportError(
            f"these weights take {weights / 2**30:.1f} GB; in ONNX Runtime and OpenVINO networks of up to "
            f"{LARGEST / 2**30:.1f} GB are measured. Take --runtime eager or compile"
        )
    payload: bytes = program.model_proto.SerializeToString()
    return payload


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), "")


@contextmanager
def _quiet() -> Iterator[io.StringIO]:
    """Exporters and compilers talk to the user about their own steps."""
    told = io.StringIO()
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        with warnings.catch_warnings(), redirect_stdout(told), redirect_stderr(told):
            warnings.simplefilter("ignore")
            yield told
    finally:
        logging.disable(before)


def _placed(model: nn.Module, example: Any, device: str) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    """A copy of the network in evaluation mode, and its inputs, on a device."""
    inputs = Inputs.real(example)
    moved = [x.to(device) if isinstance(x, Tensor) else x for x in inputs.args]
    named = {k: x.to(device) if isinstance(x, Tensor) else x for k, x in inputs.kwargs.items()}
    return rebuilt(model, {}).to(device).eval(), tuple(moved), named


def _torch_pass(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], threads: int, device: str
) -> Pass:
    def once() -> Any:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        with torch.inference_mode():
            out = model(*args, **kwargs)
        if device != "cpu":
            torch.cuda.synchronize(device)
        return out

    return once


def _bound(session: Any, feed: Mapping[str, np.ndarray], device: str) -> Pass:
    """A pass whose inputs and outputs stay on the GPU: copies are not the network's."""
    ort, index = required("onnxruntime", "export", "ONNX Runtime"), _index(device)
    binding = session.io_binding()
    for name, x in feed.items():
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(x, "cuda", index))
    for output in session.get_outputs():
        binding.bind_output(output.name, "cuda", index)

    def once() -> Any:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return once


def _feed(session: Any, inputs: list[np.ndarray]) -> dict[str, np.ndarray]:
    return {i.name: x for i, x in zip(session.get_inputs(), inputs, strict=True)}


def _index(device: str) -> int:
    return torch.device(device).index or 0


def _numpy(example: Any) -> list[np.ndarray]:
    inputs = Inputs.real(example)
    return [x.detach().cpu().numpy() for x in output_tensors([*inputs.args, *inputs.kwargs.values()])]
