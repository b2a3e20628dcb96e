"""Where a network runs: PyTorch itself, torch.compile, ONNX Runtime, OpenVINO. One class and one registry line each."""

from __future__ import annotations

import io
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sentei.errors import ExportError
from sentei.extras import required
from sentei.graph.inputs import Inputs
from sentei.train.evaluate import evaluating

Pass = Callable[[], Any]
"""One forward pass on inputs that are at hand."""
IN_PLACE = ("eager", "compile")


class Runtime(ABC):
    """A place where networks run.

    >>> once = RUNTIMES["onnxruntime"].prepare(model, torch.zeros(1, 3, 224, 224), threads=1)  # doctest: +SKIP
    >>> once()  # doctest: +SKIP
    """

    @abstractmethod
    def prepare(self, model: nn.Module, example: Any, *, threads: int = 1, device: str = "cpu") -> Pass:
        """A forward pass of this network, ready to be called again and again.

        `example` is a tensor, a tuple (by position) or a dict (by keyword), as for `trace`. Raises ExportError if the
        runtime is not installed or does not take the network.
        """

    @abstractmethod
    def versions(self) -> dict[str, str]:
        """The packages that decide how fast it is."""


class Eager(Runtime):
    """PyTorch as it is."""

    def prepare(self, model: nn.Module, example: Any, *, threads: int = 1, device: str = "cpu") -> Pass:
        placed, args, kwargs = _placed(model, example, device)
        return _torch_pass(placed, args, kwargs, threads, device)

    def versions(self) -> dict[str, str]:
        return {"torch": str(torch.__version__)}


class Compile(Eager):
    """torch.compile with its default settings."""

    def prepare(self, model: nn.Module, example: Any, *, threads: int = 1, device: str = "cpu") -> Pass:
        placed, args, kwargs = _placed(model, example, device)
        return _torch_pass(torch.compile(placed), args, kwargs, threads, device)


class OnnxRuntime(Runtime):
    """ONNX Runtime on a file of the dynamo exporter."""

    def prepare(self, model: nn.Module, example: Any, *, threads: int = 1, device: str = "cpu") -> Pass:
        return self.of_bytes(to_onnx(model, example), _numpy(example), threads, device)

    def of_bytes(self, payload: bytes, inputs: list[np.ndarray], threads: int = 1, device: str = "cpu") -> Pass:
        """A pass of a network that is ONNX already; inputs in the order of the file's."""
        ort = required("onnxruntime", "export", "ONNX Runtime")
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        wanted = "CPUExecutionProvider" if device == "cpu" else "CUDAExecutionProvider"
        if wanted not in ort.get_available_providers():
            raise ExportError(f"this ONNX Runtime has no {wanted}: pip install onnxruntime-gpu, or take --device cpu")
        session = ort.InferenceSession(payload, options, providers=[wanted])
        feed = {i.name: x for i, x in zip(session.get_inputs(), inputs, strict=True)}
        return lambda: session.run(None, feed)

    def versions(self) -> dict[str, str]:
        return {"onnxruntime": str(required("onnxruntime", "export", "ONNX Runtime").__version__)}


class OpenVino(Runtime):
    """OpenVINO on a file of the dynamo exporter, for latency."""

    def prepare(self, model: nn.Module, example: Any, *, threads: int = 1, device: str = "cpu") -> Pass:
        return self.of_bytes(to_onnx(model, example), _numpy(example), threads, device)

    def of_bytes(self, payload: bytes, inputs: list[np.ndarray], threads: int = 1, device: str = "cpu") -> Pass:
        """A pass of a network that is ONNX already; inputs in the order of the file's."""
        ov = required("openvino", "openvino", "OpenVINO")
        if device != "cpu":
            raise ExportError(f"OpenVINO is measured on the CPU only; got device {device!r}")
        core = ov.Core()
        settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY",
                    "INFERENCE_PRECISION_HINT": "f32"}  # fmt: skip
        compiled = core.compile_model(core.read_model(io.BytesIO(payload)), "CPU", settings)
        request = compiled.create_infer_request()
        return lambda: request.infer(inputs)

    def versions(self) -> dict[str, str]:
        return {"openvino": str(required("openvino", "openvino", "OpenVINO").__version__)}


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


def to_onnx(model: nn.Module, example: Any, dynamic: Mapping[str, Any] | tuple[Any, ...] | None = None) -> bytes:
    """A network as ONNX, by the dynamo exporter.

    `dynamic` is what `torch.onnx.export` takes as `dynamic_shapes`. Raises ExportError if the exporter refuses.
    """
    required("onnx", "export", "ONNX")
    required("onnxscript", "export", "ONNX")
    inputs = Inputs.real(example)
    with evaluating(model), _quiet() as told:
        try:
            program = torch.onnx.export(
                model, inputs.args, kwargs=dict(inputs.kwargs), dynamic_shapes=dynamic, dynamo=True, verbose=False
            )
        except Exception as error:  # the exporter raises whatever its passes raise
            raise ExportError(
                f"torch.onnx.export refuses this network: {type(error).__name__}: {_first_line(error)}"
            ) from error
    assert program is not None, told.getvalue()
    payload: bytes = program.model_proto.SerializeToString()
    return payload


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), "")


@contextmanager
def _quiet() -> Any:
    """Exporters talk to the user about their own steps."""
    told = io.StringIO()
    with warnings.catch_warnings(), redirect_stdout(told), redirect_stderr(told):
        warnings.simplefilter("ignore")
        yield told


def _placed(model: nn.Module, example: Any, device: str) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    inputs = Inputs.real(example)
    moved = [x.to(device) if isinstance(x, Tensor) else x for x in inputs.args]
    named = {k: x.to(device) if isinstance(x, Tensor) else x for k, x in inputs.kwargs.items()}
    return model.to(device).eval(), tuple(moved), named


def _torch_pass(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], threads: int, device: str
) -> Pass:
    def once() -> Any:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        with torch.inference_mode():
            out = model(*args, **kwargs)
        if device != "cpu":
            torch.cuda.synchronize()
        return out

    return once


def _numpy(example: Any) -> list[np.ndarray]:
    inputs = Inputs.real(example)
    return [x.detach().cpu().numpy() for x in (*inputs.args, *inputs.kwargs.values()) if isinstance(x, Tensor)]
