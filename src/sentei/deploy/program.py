"""A network as torch.export sees it, without the weights that it never reads."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from sentei.deploy.axes import Axes, collection, others
from sentei.deploy.plain import Plain
from sentei.errors import ExportError

OURS = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
TOLD = ("stack_trace", "source_fn_stack", "torch_fn", "nn_module_stack")
"""What nodes keep of the source files and folders of whoever exports."""


def program_of(plain: Plain, tensors: Sequence[Tensor], axes: Axes, bounded: bool = False) -> ExportedProgram:
    """The program of a network. ExportError, with the reason in a line, if it has none for these axes."""
    for told, inputs in [("the example", tensors), *others(tensors, axes)]:
        _run(plain, inputs, told)
    with quietly():
        try:
            program = torch.export.export(
                plain, tuple(tensors), dynamic_shapes=collection(tensors, axes, bounded), strict=False
            )
            if plain.left_out:  # what made them goes too, which operations in place would keep
                program = program.run_decompositions({})
                program.graph.eliminate_dead_code()
        except Exception as error:  # it raises whatever its passes and the network's own code raise
            raise ExportError(f"torch.export refuses this network ({axes}): {reason(error)}") from error
    _strip(program)
    return program


def _run(plain: Plain, tensors: Sequence[Tensor], told: str) -> None:
    try:
        with torch.no_grad(), quietly():
            plain(*tensors)
    except ExportError:
        raise
    except Exception as error:  # the network's own code may raise anything
        raise ExportError(f"the network itself does not take {told} ({reason(error)})") from error


def _strip(program: ExportedProgram) -> None:
    """Take out what the forward never reads, and what nodes tell of the machine they were traced on."""
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    specs = program.graph_signature.input_specs
    for spec in [s for s in specs if s.kind in OURS and not nodes[s.arg.name].users]:
        program.graph.erase_node(nodes[spec.arg.name])
        specs.remove(spec)
        program.state_dict.pop(spec.target, None)
        program.constants.pop(spec.target, None)
    for node in program.graph.nodes:
        for name in TOLD:
            node.meta.pop(name, None)
    program.graph_module.recompile()


def parameters_of(program: ExportedProgram) -> int:
    """Numbers in the parameters that are left."""
    return sum(program.state_dict[n].numel() for n in program.graph_signature.parameters)


def symbols_of(program: ExportedProgram, free: Sequence[dict[int, str]]) -> dict[str, str]:
    """Names of free sizes by the symbols that stand for them in a program."""
    inputs = set(program.graph_signature.user_inputs)
    nodes = [n for n in program.graph.nodes if n.op == "placeholder" and n.name in inputs]
    found: dict[str, str] = {}
    for node, names in zip(nodes, free, strict=True):
        for dim, name in names.items():
            found.setdefault(str(node.meta["val"].shape[dim]), name)
    return found


def reason(error: Exception) -> str:
    """The line of a long error that says most."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    points = [line.removeprefix("- ") for line in lines if line.startswith("- ")]
    first = (points or lines or [""])[0]
    return f"{type(error).__name__}: {first[:300]}"


@contextmanager
def quietly() -> Iterator[None]:
    """Exporters talk to the user about their own steps."""
    told, before = io.StringIO(), logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(told), redirect_stderr(told):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
