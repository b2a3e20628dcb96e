"""ONNX, by PyTorch's dynamo exporter: one file, weights inside; beyond 2 GB they lie in a second one beside it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from sentei.deploy.formats.format import RECORD, Format, Sketch
from sentei.deploy.program import quietly, reason, symbols_of
from sentei.errors import ExportError

LARGEST = 2**31
"""Bytes that an ONNX file can hold."""
ROOM = 2**24
"""Of them for the graph and the record; the rest is for weights."""
WEIGHTS = ".data"
"""How the name of the second file ends."""


class Onnx(Format):
    name, suffix, extra = "onnx", ".onnx", "export"
    modules = ("onnx", "onnxscript", "onnxruntime")
    packages = ("torch", "onnx", "onnxscript", "onnxruntime")
    loader = '''\
import numpy as np
import onnxruntime


def load(path):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    return lambda *arrays: session.run(None, dict(zip(names, arrays)))


def about(path):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.get_modelmeta().custom_metadata_map["sentei"]
'''

    def build(self, sketch: Sketch) -> Any:
        model = model_of(sketch)
        if not is_large(model):
            _check(model)
        return model

    def write(self, built: Any, path: Path, record: str) -> list[Path]:
        """Weights that do not fit in move to a file of their own the first time, and stay there."""
        import onnx

        del built.metadata_props[:]
        onnx.helper.set_model_props(built, {RECORD: record})
        weights = path.with_name(path.name + WEIGHTS)
        if is_large(built):
            weights.unlink(missing_ok=True)  # of a try before; onnx would append to it
            onnx.external_data_helper.convert_model_to_external_data(built, location=weights.name)
            onnx.external_data_helper.write_external_data_tensors(built, str(path.parent))
        path.write_bytes(built.SerializeToString())
        if not any(map(onnx.external_data_helper.uses_external_data, built.graph.initializer)):
            return [path]
        _check(str(path))
        return [path, weights]


def is_large(model: Any) -> bool:
    """Whether a file cannot hold the weights of a model."""
    return bytes_of(model) > LARGEST - ROOM


def bytes_of(model: Any) -> int:
    """Of the weights in a model."""
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer)


def _check(model: Any) -> None:
    """ExportError for a model, or a file with weights beside it, that is not as ONNX wants it."""
    import onnx

    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # of several kinds
        raise ExportError(f"onnx.checker refuses what torch.onnx.export made: {reason(error)}") from error


def model_of(sketch: Sketch) -> Any:
    """A program as an ONNX model."""
    with quietly():
        try:
            made = torch.onnx.export(
                sketch.program, dynamo=True, verbose=False, input_names=list(sketch.inputs),
                output_names=list(sketch.outputs),
            )  # fmt: skip
        except Exception as error:  # whatever its passes raise
            raise ExportError(f"torch.onnx.export refuses this network: {reason(error)}") from error
        assert made is not None
        model = made.model_proto
    _rename(model, symbols_of(sketch.program, sketch.free))
    _strip(model)
    return model


def _rename(model: Any, names: dict[str, str]) -> None:
    """Free sizes by their names instead of symbols."""
    graph = model.graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = re.sub(r"\w+", lambda m: names.get(m[0], m[0]), dim.dim_param)


def _strip(model: Any) -> None:
    """Take out what the exporter notes on its way, folders of this machine among it."""
    graph = model.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
