"""OpenVINO's own format, read from ONNX: the graph as XML, and the weights in a file of the same name beside it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from sentei.deploy.formats.format import RECORD, Format, Sketch
from sentei.deploy.formats.onnx import bytes_of, is_large, model_of
from sentei.deploy.program import reason
from sentei.errors import ExportError
from sentei.extras import openvino_core


class OpenVino(Format):
    name, suffix, extra = "openvino", ".xml", "openvino"
    modules = ("openvino", "onnx", "onnxscript")
    packages = ("torch", "onnx", "onnxscript", "openvino")
    loader = '''\
import openvino

core = openvino.Core()  # one for all files: a second one could end the process at its next signal


def load(path):
    exact = {"INFERENCE_PRECISION_HINT": "f32"}  # some processors would compute in bfloat16
    network = core.compile_model(path, "CPU", exact)
    return lambda *arrays: [out for out in network(arrays).to_tuple()]


def about(path):
    return core.read_model(path).get_rt_info("sentei").astype(str)
'''

    def build(self, sketch: Sketch) -> Any:
        model = model_of(sketch)
        if is_large(model):
            raise ExportError(
                "OpenVINO reads this network from ONNX in memory, which holds 2 GB; the weights are "
                f"{bytes_of(model) / 1e9:.1f} GB. Take format onnx: its weights lie in a second file then, and "
                "OpenVINO reads the two of them"
            )
        try:
            return openvino_core().read_model(io.BytesIO(model.SerializeToString()))
        except Exception as error:  # it raises RuntimeError of its own
            raise ExportError(f"OpenVINO does not read this network: {reason(error)}") from error

    def write(self, built: Any, path: Path, record: str) -> list[Path]:
        import openvino

        built.set_rt_info(record, RECORD)
        openvino.save_model(built, path, compress_to_fp16=False)
        return [path, path.with_suffix(".bin")]
