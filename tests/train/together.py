"""Functions run by several processes at once, which share their work as those of torchrun do."""

import os
import pickle
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


def together(count: int, folder: Path, function: Callable[..., Any], *args: Any) -> list[Any]:
    """What `function(*args)` returns in each of `count` processes, or raises in the first that raises."""
    context, store = get_context("fork"), folder / f"store{os.urandom(4).hex()}"
    pipes = [context.Pipe(duplex=False) for _ in range(count)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forks of a process with threads: these have one
        started = [
            context.Process(target=_run, args=(rank, count, store, pipe[1], function, args))
            for rank, pipe in enumerate(pipes)
        ]
        for process in started:
            process.start()
    try:
        found = [pickle.loads(pipe[0].recv()) if pipe[0].poll(120) else None for pipe in pipes]
    finally:
        for process in started:
            process.join(5)
            process.kill()
    for good, value in (answer or (False, TimeoutError("no answer")) for answer in found):
        if not good:
            raise value
    return [value for _, value in found]


def _run(rank: int, count: int, store: Path, pipe: Any, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=count, timeout=timedelta(seconds=60)
    )
    try:
        answer = (True, function(*args))
    except Exception as error:
        traceback.print_exc()
        answer = (False, error)
    pipe.send(pickle.dumps(answer))
    dist.destroy_process_group()
    os._exit(0)
