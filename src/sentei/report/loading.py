"""How to use the network of a run: lines of Python and of the shell, as they can be typed."""

from __future__ import annotations

import shlex

from sentei.report.blocks import Block, Code, Section
from sentei.report.reading import RunFiles
from sentei.tasks.registry import TASKS

TRACED_WHOLE = ("classification", "segmentation")
"""Tasks whose networks are traced as a whole, so that `load` needs no forward."""


def how_to_load(run: RunFiles) -> Section:
    """Python that gives the network, and what the command line can do with the run."""
    python = [*_imports(run), "", *_network(run)]
    blocks: list[Block] = [Code("In Python", "\n".join(python))]
    if run.command is not None:
        blocks.append(Code("On the command line", "\n".join(_commands(run, run.command.trust))))
    return Section("How to load it", blocks)


def _imports(run: RunFiles) -> list[str]:
    lines = ["import sentei"] if run.pruned else []
    if run.command is not None:
        lines.append("from sentei.models import build_model")
    if "task_of" in _part(run):
        lines.append("from sentei.tasks import task_of")
    return lines


def _network(run: RunFiles) -> list[str]:
    folder, part = str(run.folder), _part(run)
    own = ["task = ...  # the task that it was pruned for"] if "task.part" in part else []
    if run.command is None:
        dense = "model = ...  # the dense network, built as it was before it was pruned; its weights do not matter"
    else:
        sizes = {"num_classes": run.command.dense.num_classes, "in_channels": run.command.dense.in_channels}
        given = "".join(f", {name}={value}" for name, value in sizes.items() if value is not None)
        weights = "" if run.pruned else f", weights={folder + '/model.safetensors'!r}"
        dense = f"model = build_model({run.command.dense.ref!r}{given}{weights}).eval()"
    return [dense, *own, f"small = sentei.load(model, {folder!r}{part})"] if run.pruned else [dense]


def _part(run: RunFiles) -> str:
    """The argument of `load` that names the traced part of a network, where that is not all of it."""
    named = None if run.command is None else run.command.data.task
    task = named or str(run.summary["task"])
    if task in TRACED_WHOLE:
        return ""
    return f", forward=task_of({task!r}).part" if task in TASKS or named else ", forward=task.part"


def _commands(run: RunFiles, trust: str) -> list[str]:
    folder = shlex.quote(str(run.folder)) + trust
    split = "" if run.summary["data_description"]["test"] else " --split val"
    lines = [f"sentei evaluate {folder}{split}", f"sentei inspect {folder}"]
    if not run.pruned:
        return [*lines, f"sentei prune {folder} --method l1 --macs 0.5"]
    return [*lines, f"sentei export {folder}", f"sentei bench {folder}"]
