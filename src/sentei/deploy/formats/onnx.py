"""ONNX, by PyTorch's dynamo exporter: one file, weights inside."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from sentei.deploy.formats.format import RECORD, Format, Sketch
from sentei.deploy.program import quietly, reason, symbols_of
from sentei.errors import ExportError

LARGEST = 2**31
"""Bytes that an ONNX file can hold; beyond it weights lie in other files."""


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
        import onnx

        model = model_of(sketch)
        try:
            onnx.checker.check_model(model, full_check=True)
        except Exception as error:  # of several kinds
            raise ExportError(f"onnx.checker refuses what torch.onnx.export made: {reason(error)}") from error
        return model

    def write(self, built: Any, path: Path, record: str) -> list[Path]:
        import onnx

        del built.metadata_props[:]
        onnx.helper.set_model_props(built, {RECORD: record})
        path.write_bytes(built.SerializeToString())
        return [path]


def model_of(sketch: Sketch) -> Any:
    """A program as an ONNX model."""
    size = sum(t.numel() * t.element_size() for t in sketch.program.state_dict.values())
    if size >= LARGEST:
        raise ExportError(f"an ONNX file holds 2 GB, the weights are {size / 1e9:.1f} GB: take format pt2")
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
