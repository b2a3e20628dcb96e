"""Evaluators that behave badly on purpose."""

import os
import time
from pathlib import Path

import torch

from sentei.errors import TrainError


class Noted:
    """Notes in its folder each time that it is packed and opened."""

    def note(self, what):
        with open(self.folder / what, "a") as file:
            file.write("x")

    def __getstate__(self):
        self.note("packed")
        return self.__dict__

    def __setstate__(self, state):
        self.__dict__.update(state)
        self.note("opened")


class Fake:
    """The sum of the widths is the fitness; some widths do something else."""

    settings = {"fitness": "sum"}

    def __init__(self, folder, dies=(), always_dies=(), fails=(), breaks=(), slow=0.0, interrupts=()):
        self.folder, self.dies, self.always_dies = Path(folder), dies, always_dies
        self.fails, self.breaks, self.slow, self.interrupts = fails, breaks, slow, interrupts

    def __call__(self, widths, share=1.0):
        total = int(widths.sum())
        flag = self.folder / f"died-{total}"
        time.sleep(self.slow)
        if total in self.interrupts:
            raise KeyboardInterrupt
        if total in self.always_dies or (total in self.dies and not flag.exists()):
            flag.touch()
            os.kill(os.getpid(), 9)
        if total in self.fails:
            raise TrainError("the loss is no longer finite")
        if total in self.breaks:
            raise ZeroDivisionError("oops")
        return {"fitness": total * share, "threads": float(torch.get_num_threads())}
