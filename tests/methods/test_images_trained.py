"""Every sample that goes through a training step is counted, by phase, and a total can be shared out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from sentei import Budget, Constraints, Data, prune
from sentei.errors import ConfigError
from sentei.methods import METHODS, Found, Method
from sentei.methods.abc import Abc
from sentei.train import Recipe, fit

RECIPE = Recipe(epochs=2, batch_size=64, lr=0.05, limit=320)
EPOCH = 320
FINE = Constraints(round_to=1, max_ratio=0.9)
"""Room for a few structures, even in a network this small."""
SHORT = {"evaluations": 3, "fitness": "train", "fitness_epochs": 1, "fitness_images": 128, "validation_images": 180}
CASES: dict[str, tuple[str, dict[str, Any], str, int]] = {
    **{name: (name, {}, "finetune", 0) for name in ("uniform", "random", "l1", "l2", "bn_scale", "fpgm", "taylor")},
    "steps": ("taylor", {"steps": 3}, "finetune", 2 * EPOCH),
    "recalibrate": ("abc", {"evaluations": 3, "validation_images": 180}, "search", 0),
    "abc": ("abc", SHORT, "search", (3 + 1) * 128),
    "evolution": ("evolution", SHORT, "search", (3 + 1) * 128),
    "random_search": ("random_search", SHORT, "search", (3 + 1) * 128),
    "stagewise": (
        "stagewise", {"supernet_epochs": 2, "full_epochs": 1, "evaluations": 4, "candidates": 1, "rounds": 1},
        "supernet", 3 * EPOCH,
    ),
    "ista": ("ista", {"sparse_epochs": 2, "rho": 1e-4}, "sparse", 2 * EPOCH),
}  # fmt: skip


@dataclass
class Spy:
    """A split that remembers the size of the batch it yielded last, and counts it once an optimizer steps on it."""

    split: Any
    last: int = 0
    stepped: int = 0
    augment: Any = field(init=False)

    def __post_init__(self) -> None:
        self.augment = self.split.augment

    def __len__(self) -> int:
        return len(self.split)

    def steps(self, *given: Any, **named: Any) -> int:
        return self.split.steps(*given, **named)

    def content(self) -> str:
        return self.split.content()

    def batches(self, *given: Any, **named: Any) -> Iterator[Any]:
        for batch in self.split.batches(*given, **named):
            self.last = len(batch[1])
            yield batch

    def step(self, *_: object) -> None:
        self.stepped, self.last = self.stepped + self.last, 0


@pytest.fixture
def spied(data: Data) -> Iterator[tuple[Data, Spy]]:
    spy = Spy(data.train)
    hook = register_optimizer_step_post_hook(spy.step)
    yield replace(data, train=spy), spy
    hook.remove()


ALIKE = ("random", "l2", "bn_scale", "fpgm", "evolution", "random_search")
"""These cut once by a score that trains nothing, as uniform and l1 do, or search as abc does."""


@pytest.mark.parametrize("case", [pytest.param(c, marks=[pytest.mark.slow] * (c in ALIKE)) for c in CASES])
def test_the_count_is_what_a_spy_has_seen(case, digitsnet, spied):
    data, spy = spied
    method, options, phase, before = CASES[case]
    budget = None if "rho" in options else Budget(macs=0.6)
    summary = prune(digitsnet, data, method=method, budget=budget, recipe=RECIPE, constraints=FINE, **options).summary
    images = summary["images_trained"]
    assert images["total"] == spy.stepped == sum(v for k, v in images.items() if k != "total")
    assert images[phase] == before + (2 * EPOCH if phase == "finetune" else 0)
    assert images["finetune"] == 2 * EPOCH + (before if phase == "finetune" else 0)
    assert summary["epochs"] == 2


def test_all_methods_are_among_the_cases():
    assert set(METHODS) <= {method for method, *_ in CASES.values()}


@pytest.mark.parametrize("case", ["uniform", "steps", "abc", "stagewise", "ista"])
def test_a_total_is_shared_out_to_within_a_batch(case, digitsnet, spied):
    data, spy = spied
    method, options, phase, before = CASES[case]
    options = {name: value for name, value in options.items() if name != "rho"}
    total = 4 * EPOCH + 200
    summary = prune(
        digitsnet, data, method=method, budget=Budget(macs=0.6), recipe=RECIPE, constraints=FINE, total_images=total,
        **options,
    ).summary  # fmt: skip
    assert spy.stepped == summary["images_trained"]["total"] == total // 64 * 64
    before = summary["images_trained"][phase] if case == "ista" else before
    assert 0 <= before <= METHODS[method].trains_on(data, RECIPE).get("sparse_epochs", 4 * EPOCH)
    assert summary["epochs"] == -(-(total // 64 * 64 - before) // EPOCH)
    assert summary["settings"]["total_images"] == total


@pytest.mark.parametrize("options", [{"cycles": 2, "sources": 3}, {"halving": 2, "fitness_epochs": 2}])
def test_what_a_search_says_beforehand_is_enough(options, digitsnet, spied):
    data, _ = spied
    how = Abc(**{**SHORT, "evaluations": 6, **options}).resolved()
    recipe = replace(RECIPE, epochs=0)
    found = prune(digitsnet, data, method=how, budget=Budget(macs=0.6), recipe=recipe, constraints=FINE).summary
    assert 0 < found["images_trained"]["search"] <= sum(how.trains_on(data, RECIPE).values())
    assert found["images_trained"]["finetune"] == 0


@pytest.mark.parametrize(
    ("method", "options", "needs", "setting"),
    [
        ("stagewise", {}, 10 * EPOCH, "supernet_epochs=10"),
        ("ista", {}, 20 * EPOCH, "sparse_epochs=20"),
        ("taylor", {"steps": 4, "step_epochs": 2}, 6 * EPOCH, "step_epochs=2"),
        ("abc", {**SHORT, "evaluations": 20}, 21 * 128, "evaluations=20"),
    ],
)
def test_a_total_that_a_method_may_use_up_is_refused(method, options, needs, setting, digitsnet, data):
    with pytest.raises(ConfigError, match=rf"may train on {needs:,} images before .*{needs:,} by {setting}\); there "
                       r"are 1,000 in all \(total_images\)"):  # fmt: skip
        prune(digitsnet, data, method=method, recipe=RECIPE, total_images=1000, **options)


def test_a_total_that_is_no_number_of_images_is_refused(digitsnet, data):
    with pytest.raises(ConfigError, match="total_images is 0; expected 1 or more"):
        prune(digitsnet, data, recipe=RECIPE, total_images=0)


@dataclass(frozen=True)
class Secretive(Method):
    """Trains without saying so beforehand."""

    about = "trains in secret"

    def find(self, pruning) -> Found:
        found = METHODS["uniform"].find(pruning)
        return replace(found, model=pruning.fit(found.model, replace(pruning.recipe, epochs=3), "secret"))


def test_a_method_that_used_more_than_it_said_gets_no_fine_tuning_and_a_warning(digitsnet, data):
    summary = prune(digitsnet, data, method=Secretive(), recipe=RECIPE, total_images=2 * EPOCH).summary
    assert summary["images_trained"]["total"] == 3 * EPOCH
    assert summary["epochs"] == 0
    assert any("trained on 960 images, 640 were allowed" in w for w in summary["warnings"])


def test_a_run_with_a_total_goes_on_after_a_kill_and_counts_what_counts(digitsnet, data, tmp_path, monkeypatch):
    def run(folder):
        return prune(
            digitsnet, data, method="taylor", steps=2, recipe=RECIPE, total_images=4 * EPOCH + 130, run_dir=folder,
            constraints=FINE,
        )  # fmt: skip

    whole = run(tmp_path / "whole")
    original, steps = torch.Tensor.backward, [0]

    class Killed(BaseException):
        pass

    def dying(tensor, *given, **named):
        steps[0] += 1
        if steps[0] == 20:  # in the middle of the fine-tuning
            raise Killed
        return original(tensor, *given, **named)

    monkeypatch.setattr(torch.Tensor, "backward", dying)
    with pytest.raises(Killed):
        run(tmp_path / "killed")
    monkeypatch.undo()
    assert '"name": "finetune"' in (tmp_path / "killed/journal.jsonl").read_text()
    again = run(tmp_path / "killed")
    assert again.summary["images_trained"] == whole.summary["images_trained"]
    assert whole.summary["images_trained"]["total"] == 4 * EPOCH + 128
    for a, b in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_batches_of_a_users_loader_count_as_they_are(digitsnet, data):
    """Their sizes are their own, the last one of an epoch is smaller."""
    batches = list(data.train.batches(100, limit=250))
    own = Data.of(train=batches, val=list(data.val.batches(180)))
    assert own.epoch_images(64) == 250
    assert own.epoch_images(64, limit=120) == 200
    summary = prune(digitsnet, own, method="uniform", recipe=replace(RECIPE, limit=None), total_images=620).summary
    assert summary["images_trained"]["total"] == 2 * 250 + 100


def test_a_training_counts_too(digitsnet, data):
    import copy

    found = fit(copy.deepcopy(digitsnet), data, RECIPE, last_limit=100, progress=False)
    assert [r["images"] for r in found.history] == [EPOCH, 64]
    assert found.images == EPOCH + 64
