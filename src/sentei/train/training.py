"""One training run, epoch by epoch: its state, what is stored of it, and how it goes on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sentei.console import say
from sentei.data import Data
from sentei.data.batches import mapped, pieces_of
from sentei.data.splits import Batches
from sentei.distributed import agree_weights, average_statistics, decided, is_leader, part, processes, summed
from sentei.errors import CheckpointError, ConfigError, TrainError
from sentei.layout import arranged, training_layout
from sentei.tasks import Task
from sentei.tasks.task import called, checked_loss, loss_of, plainly
from sentei.train.evaluate import check_device, evaluate
from sentei.train.gradients import Gradients
from sentei.train.hints import Hints
from sentei.train.memory import memory_of
from sentei.train.optimizers import Factory, Optimizers, factory_name
from sentei.train.passes import evaluating
from sentei.train.progress import Progress
from sentei.train.recipe import Recipe
from sentei.train.stored import Record, Stored

AfterStep = Callable[[nn.Module, float], None]


class Objective(Protocol):
    """What a step minimises, where that is more than the recipe's loss of the model itself."""

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        """Add the gradients of one batch to the model's parameters; returns the loss to be shown."""
        ...

    def narrowest(self, model: nn.Module) -> AbstractContextManager[nn.Module]:
        """Context in which the model runs as the narrowest network that is trained in it."""
        ...

    def status(self) -> str:
        """A few words for the progress bar."""
        ...

    def measured(self) -> Record:
        """Plain values for the record of the epoch that ends here; starts over."""
        ...


class Stateful(Protocol):
    """What keeps numbers of its own from step to step, as plain values and tensors."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any], /) -> object: ...


@dataclass
class Training:
    """The mutable state of one training run."""

    model: nn.Module
    data: Data
    recipe: Recipe
    task: Task
    name: str
    run_dir: Path | None
    teacher: nn.Module | None
    after_step: AfterStep | None
    plain: tuple[str, ...]
    objective: Objective | None
    factory: Factory | None
    last_limit: int | None = None
    checkpoint_minutes: float | None = None
    beside: Stateful | None = None
    journal: bool = True
    hints: Hints | None = None
    history: list[Record] = field(default_factory=list)
    inside: Record = field(default_factory=dict)
    """How far an epoch had come that was interrupted."""

    def __post_init__(self) -> None:
        recipe, device = self.recipe, self.data.device
        with self.objective.narrowest(self.model) if self.objective is not None else nullcontext(self.model) as least:
            self.layout = training_layout(least, device, recipe.channels_last)
        for module in filter(None, (self.model, self.teacher)):
            module.to(device).to(memory_format=self.layout)
        if len(self.data.train) == 0:
            raise TrainError("There are no training images.")
        if processes() > recipe.batch_size:
            raise ConfigError(f"a batch of {recipe.batch_size} cannot be shared by {processes()} processes")
        self.task = self.task.with_settings(recipe.label_smoothing, recipe.temperature)
        if self.teacher is not None and recipe.distill_weight > 0:
            refuse_teacher(self.task)
        if self.teacher is None or recipe.hint_weight == 0 or recipe.compile:  # hooks would be compiled at each step
            self.hints = None
        self.steps = self.data.train.steps(recipe.batch_size, recipe.limit)
        self.last_steps = self.data.train.steps(recipe.batch_size, self._limit(recipe.epochs - 1))
        self.bf16 = recipe.autocast(device)
        self.forward: nn.Module = torch.compile(self.model) if recipe.compile else self.model  # type: ignore[assignment]
        self.optimizers = Optimizers(self.model, recipe, self.plain, self.factory)
        self.average: AveragedModel | None = None
        if recipe.ema_decay is not None:
            decay = get_ema_multi_avg_fn(recipe.ema_decay)
            self.average = AveragedModel(self.model, multi_avg_fn=decay, use_buffers=True)
        self.augment = recipe.augment(self.data.train.augment)
        self.gradients = Gradients(self.model, self.task, recipe, self.bf16, self._loss, self.objective)
        self.stored = Stored(self.run_dir if is_leader() else None, self.name, self.journal)
        self.saved_at = time.monotonic()

    @property
    def measured(self) -> nn.Module:
        return self.average.module if self.average is not None else self.model

    def rehearse(self) -> None:
        """Measure one batch before any work, for what can go wrong there."""
        if not self.history and self.recipe.epochs and len(self.data.val):
            evaluate(self.measured, self.data.val, task=self.task, batch_size=1, limit=1, finite=False)

    def fit_into_memory(self, shown: bool) -> None:
        """Compute batches in as many pieces as the memory that is allowed needs; an objective knows its own."""
        limit, size = self.recipe.train_memory_mb, self.data.batch_images(self.recipe.batch_size)
        if limit is None or self.objective is not None or len(self.history) == self.recipe.epochs:
            return
        batch = mapped(next(iter(self.data.train.batches(2, limit=2))), self._arranged)
        few = pieces_of(batch, max(self.task.count(batch) // 2, 1))[0]  # loaders of one's own give whole batches
        memory, mine = memory_of(self.model, few, self.task, self.recipe, self.teacher), math.ceil(size / processes())
        self.gradients.pieces = max(memory.pieces(mine, limit), self.recipe.accumulate)
        each = " to each process" if processes() > 1 else ""
        if shown:
            say(f"{self.name}: memory {memory.told(mine, self.gradients.pieces)}, of {limit:,} MB allowed{each}")

    def epoch(self, epoch: int, bar: Progress) -> Record:
        started = time.perf_counter() - self.inside.get("seconds", 0.0)
        devices = [self.data.device] if self.data.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            self._seed(epoch)
            loss, images = self._train(epoch, bar, started)
        self._agree()
        self._check_weights(epoch)
        trained = time.perf_counter() - started
        record: Record = {"epoch": epoch + 1, "loss": loss, "lr": self._lr(epoch, 0)}
        if self.objective is not None:
            record |= self.objective.measured()
        if len(self.data.val):
            memory = self.recipe.train_memory_mb
            found = evaluate(self.measured, self.data.val, task=self.task, memory_mb=memory, bf16=self.bf16)
            others = {f"val_{name}": value for name, value in found.figures.items() if name != self.task.metric}
            record |= {self.task.key: found.value, **others}
        seconds = time.perf_counter() - started
        return record | {
            "images": images, "seconds": round(seconds, 3), "images_per_second": round(images / trained, 1)
        }  # fmt: skip

    def _seed(self, epoch: int) -> None:
        """Random numbers of an epoch, or of the rest of one; those of each process are its own."""
        if "rng" in self.inside and is_leader():
            torch.set_rng_state(self.inside["rng"])
            if self.inside["cuda_rng"] is not None:
                torch.cuda.set_rng_state(self.inside["cuda_rng"], self.data.device)
        else:
            begun = self.inside.get("step", 0)
            torch.manual_seed(self.recipe.seed * 1_000_003 + epoch + 7_919 * (part().index + 31 * begun))

    def _agree(self) -> None:
        """The same network on every process, whatever their last bits."""
        for network in (self.model, self.average):
            if network is not None:
                average_statistics(network)
                agree_weights(network)

    def _lr(self, epoch: int, step: int) -> float:
        return self.recipe.lr_at(epoch * self.steps + step, self.steps, self.last_steps)

    def _limit(self, epoch: int) -> int | None:
        """Samples of an epoch, where not all of them are wanted."""
        last = self.last_limit is not None and epoch == self.recipe.epochs - 1
        return self.last_limit if last else self.recipe.limit

    def _train(self, epoch: int, bar: Progress, started: float) -> tuple[float, int]:
        recipe, inside = self.recipe, self.inside
        begun, images, done = inside.get("step", 0), inside.get("images", 0), inside.get("step", 0)
        steps = self.last_steps if epoch == recipe.epochs - 1 else self.steps
        self.model.train()
        # Reading the loss waits for the device: free on a CPU, costly at each step on a GPU.
        every = 1 if self.data.device.type == "cpu" else 50
        total = torch.tensor(inside.get("loss", 0.0), device=self.data.device)
        self.inside = {}
        teaching = evaluating(self.teacher) if self.teacher is not None else nullcontext()
        with teaching:
            for step, batch in enumerate(self._batches(epoch, begun), start=begun):
                batch = mapped(batch, self._arranged)
                if step == begun:
                    check_device(self.model, self.task, batch)
                lr, count = self._lr(epoch, step), self.task.count(batch)
                self.optimizers.zero_grad()
                total += self.gradients(batch)
                images, done = images + count, step + 1
                if step % every == 0 or step == steps - 1:
                    self._check_finite(float(summed(total.clone())), epoch, step, every)
                if recipe.clip_grad is not None:
                    nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip_grad)
                self.optimizers.step(lr)
                if self.after_step is not None:
                    self.after_step(self.model, lr)
                if self.average is not None:
                    self.average.update_parameters(self.model)
                status = self.objective.status() if self.objective is not None and step % every == 0 else ""
                bar.step_done(count * processes(), float(total) / done if step % every == 0 else None, status)
                if done < steps and self._is_time():
                    self._save_inside(done, float(total), images, started)
        loss, shown = torch.tensor([float(total), images], dtype=torch.float64), max(done, 1) * processes()
        loss, count = summed(loss).tolist()
        return loss / shown, int(count)

    def _batches(self, epoch: int, start: int) -> Batches:
        """This process's part of each batch of an epoch."""
        return self.data.train.batches(
            self.recipe.batch_size,
            train=True,
            seed=self.recipe.seed,
            epoch=epoch,
            limit=self._limit(epoch),
            augment=self.augment,
            part=part(),
            start=start,
        )

    def _arranged(self, x: Tensor) -> Tensor:
        return arranged(x, self.layout)

    def _loss(self, batch: Any) -> Tensor:
        share = self.recipe.distill_weight
        if self.teacher is None or share == 0:
            return loss_of(self.task, self.forward, batch)
        inputs = self.task.inputs(batch)
        with self._features(self.model) as found:
            output = called(self.forward, inputs)
        with torch.no_grad(), self._features(self.teacher) as wanted:
            target = called(self.teacher, inputs)
        with plainly(self.task, "the loss"):
            hard, soft = self.task.loss(output, batch), self.task.imitate(output, target, batch)
        loss = checked_loss(self.task, (1 - share) * hard + share * soft)
        if self.hints is not None:
            loss = loss + self.recipe.hint_weight * self.hints.distance(found, wanted)
        return loss

    def _features(self, model: nn.Module) -> AbstractContextManager[dict[str, Tensor]]:
        """What hints are computed from, once the model has run."""
        return self.hints.of(model) if self.hints is not None else nullcontext({})

    def _check_finite(self, total: float, epoch: int, step: int, every: int) -> None:
        if not math.isfinite(total):
            span = "" if every == 1 else f", in the last {every} steps"
            raise self._diverged(
                f"The loss is no longer finite at epoch {epoch + 1}, step {step + 1} of {self.steps}{span}"
            )

    def _check_weights(self, epoch: int) -> None:
        """The last step of an epoch can still break the weights; no checkpoint may hold that."""
        state = self.model.state_dict()
        broken = [n for n, t in state.items() if t.is_floating_point() and not bool(torch.isfinite(t).all())]
        if broken:
            raise self._diverged(f"{broken[0]} is no longer finite after epoch {epoch + 1}")

    def _diverged(self, what: str) -> TrainError:
        kept = f"The last good checkpoint is {self.stored.file} (epoch {len(self.history)})."
        if self.stored.file is None or not self.history:
            kept = "There is no checkpoint yet."
        lower = f"Lower the learning rate ({self.recipe.lr}) or set clip_grad"
        return TrainError(
            f"{what}. {kept} {lower}{'; bf16=False rules out overflow in bfloat16' if self.bf16 else ''}."
        )

    # -- what is stored

    def save(self, record: Record) -> None:
        self.history.append(record)
        self.stored.save(self._state({}))
        self.stored.told(record)
        self.saved_at = time.monotonic()

    def _is_time(self) -> bool:
        """Whether the leader is to store the state within an epoch."""
        wanted = self.checkpoint_minutes is not None and self.stored.file is not None
        return wanted and time.monotonic() - self.saved_at >= 60 * (self.checkpoint_minutes or 0)

    def _save_inside(self, step: int, loss: float, images: int, started: float) -> None:
        seconds = time.perf_counter() - started
        self.stored.save(self._state({
            "step": step, "loss": loss, "images": images, "seconds": seconds, "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self.data.device) if self.data.device.type == "cuda" else None,
        }))  # fmt: skip
        self.saved_at = time.monotonic()

    def _state(self, inside: Record) -> Record:
        return {
            "recipe": self.recipe.to_dict(),
            "history": self.history,
            "model": self.model.state_dict(),
            "optimizer": self.optimizers.main.state_dict(),
            "factory": factory_name(self.factory),
            "last_limit": self.last_limit,
            "average": self.average.state_dict() if self.average is not None else None,
            "beside": self.beside.state_dict() if self.beside is not None else None,
            "inside": inside,
        }

    def resume(self) -> None:
        """Go on from the leader's last state, if there is one."""
        settings = {"factory": factory_name(self.factory), "last_limit": self.last_limit, **self.recipe.to_dict()}
        state = decided(lambda: self.stored.load(settings))
        if state is None:
            return
        try:
            self.model.load_state_dict(state["model"])
            self.optimizers.main.load_state_dict(state["optimizer"])
            if self.average is not None:
                self.average.load_state_dict(state["average"])
            if self.beside is not None:
                self.beside.load_state_dict(state["beside"])
        except (KeyError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"{self.stored.file} belongs to another model: {error}") from error
        self.history, self.inside = list(state["history"]), state.get("inside", {})
        self.stored.complete(self.history)

    def ended(self) -> None:
        """The model is what was measured, in evaluation mode."""
        if self.average is not None and self.history:
            self.model.load_state_dict(self.average.module.state_dict())
        self.model.eval()


def refuse_teacher(task: Task) -> None:
    """ConfigError if a task cannot learn from another network's outputs."""
    if not task.imitates:
        raise ConfigError(
            f"task {task.name} does not say how to imitate a teacher, so it cannot distil: leave out --distill "
            "(distill=True, a teacher), or write `imitate`"
        )
