"""Several processes train, measure and recalibrate what one process does.

In double precision: in single, twenty steps of this network turn a difference of 2e-7 into one of 2e-3.
"""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from sentei.data import Augment, Data, load_data
from sentei.distributed import agreed, alike, decided, is_leader, processes
from sentei.errors import ConfigError, TrainError
from sentei.models import build_model
from sentei.tasks import Classification, Segmentation
from sentei.train import Recipe, evaluate, fit, recalibrate
from sentei.train.hints import Hint, Hints
from tests.train.together import together

TWENTY = Recipe(epochs=1, batch_size=60, limit=1200, lr=0.03, sync_norm=True, bf16=False)


@pytest.fixture(scope="module")
def digits() -> Data:
    return load_data("digits")


def precise() -> nn.Module:
    torch.manual_seed(0)
    model = build_model("digitsnet").double()
    model.register_forward_pre_hook(lambda _, inputs: (inputs[0].double(),))
    return model


def trained(data: Data, recipe: Recipe, folder: Path | None = None, **options) -> dict[str, torch.Tensor]:
    model = precise()
    found = fit(model, data, recipe, run_dir=folder, progress=False, **options)
    return {"loss": torch.tensor(found.history[-1]["loss"]), "images": torch.tensor(found.images), **model.state_dict()}


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max(float((one[n].double() - other[n].double()).abs().max()) for n in one)


CHANGES = {
    "even": {},
    "uneven": {"batch_size": 61, "limit": 1220},
    "clipped-averaged": {"clip_grad": 0.5, "ema_decay": 0.9, "accumulate": 1},
}
FAST, SLOW = {"even": 2, "uneven": 3, "clipped-averaged": 2}, {"even": 3, "uneven": 2, "clipped-averaged": 3}


@pytest.mark.parametrize(
    ("change", "count"), [*FAST.items(), *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW.items())]
)
def test_several_processes_train_to_the_weights_of_one(digits, tmp_path, count, change):
    recipe = replace(TWENTY, **CHANGES[change])
    alone = trained(digits, recipe)
    found = together(count, tmp_path, trained, digits, recipe)
    assert apart(alone, found[0]) < 1e-6
    assert all(apart(found[0], other) == 0 for other in found)


@pytest.mark.parametrize("hints", [None, Hints([Hint("conv2", variance=0.5)])], ids=["outputs", "features"])
def test_a_teacher_is_imitated_alike(digits, tmp_path, hints):
    options = {"teacher": precise(), "hints": hints}
    alone = trained(digits, TWENTY, **options)
    assert apart(alone, together(2, tmp_path, lambda: trained(digits, TWENTY, **options))[0]) < 1e-6


def test_without_synchronised_norms_the_processes_end_alike_all_the_same(digits, tmp_path):
    first, second = together(2, tmp_path, trained, digits, replace(TWENTY, sync_norm=False))
    assert apart(first, second) == 0
    assert apart(trained(digits, TWENTY), first) > 1e-5  # each normalised by its own part


def test_an_unused_head_is_no_hindrance(digits, tmp_path):
    def heads():
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        model.spare = nn.Linear(3, 3)
        model.forward = lambda x: model[1](model[0](x))
        fit(model, digits, replace(TWENTY, limit=120), progress=False)
        return model[1].weight

    first, second = together(2, tmp_path, heads)
    assert torch.equal(first, second)


def test_measuring_and_recalibrating_are_shared_without_a_difference(digits, tmp_path):
    model = build_model("digitsnet")

    def measured():
        network = copy.deepcopy(model)
        from sentei.distributed import part

        batches = digits.train.batches(100, train=True, limit=500, augment=Augment(), part=part())
        recalibrate(network, batches, shared=processes() > 1)
        return evaluate(network, digits.val), evaluate(network, digits.val, limit=7), network.state_dict()

    whole, few, state = measured()
    for count in (2, 3):
        for found in together(count, tmp_path, measured):
            assert found[0].figures == pytest.approx(whole.figures, rel=1e-6)
            assert found[1].figures == pytest.approx(few.figures, rel=1e-6)
            assert (found[0].images, found[1].images) == (whole.images, few.images)
            assert apart(state, found[2]) < 1e-5


class Own(Classification):
    """A measure of its own, which knows nothing of other processes."""

    def measure(self, model, batches):
        return {"accuracy": sum(len(y) for _, y in batches) / 1000}


def test_a_measure_that_says_nothing_of_sharing_sees_everything(digits, tmp_path):
    found = together(2, tmp_path, lambda: evaluate(build_model("digitsnet"), digits.val, task=Own()).value)
    assert found == [len(digits.val) / 1000] * 2


def test_segmentation_is_counted_over_all(tmp_path):
    torch.manual_seed(0)
    batches = [(torch.randn(2, 3, 8, 8), torch.randint(0, 4, (2, 8, 8))) for _ in range(5)]
    data, model = Data.of(batches, batches), nn.Conv2d(3, 4, 3, padding=1)
    whole = evaluate(model, data.val, task=Segmentation())
    found = together(2, tmp_path, lambda: evaluate(model, data.val, task=Segmentation()))
    assert all(other.figures == pytest.approx(whole.figures) and other.images == 10 for other in found)


def test_a_run_of_two_goes_on_in_three_and_in_one(digits, tmp_path):
    recipe = replace(TWENTY, epochs=4, batch_size=240, limit=480)
    whole = trained(digits, recipe)

    class Stop(Exception):
        pass

    def some(epochs: int, folder: Path):
        def stop(record):
            if record["epoch"] == epochs:
                raise Stop

        try:
            return trained(digits, recipe, folder, on_epoch=stop)
        except Stop:
            return is_leader()

    assert together(2, tmp_path, some, 1, tmp_path / "run") == [True, False]
    assert together(3, tmp_path, some, 2, tmp_path / "run") == [True, False, False]
    assert some(3, tmp_path / "run") is True
    assert apart(whole, together(2, tmp_path, some, 0, tmp_path / "run")[1]) < 1e-6


def test_more_processes_than_images_a_step_are_refused(digits, tmp_path):
    with pytest.raises(ConfigError, match="a batch of 1 cannot be shared by 2 processes"):
        together(2, tmp_path, trained, digits, replace(TWENTY, batch_size=1))


# -- decisions


def test_the_first_process_decides_alone_and_its_error_is_everybodys(tmp_path):
    def decide():
        calls: list[int] = []
        value = decided(lambda: (calls.append(1), {"widths": [1, 2], "alone": processes()})[1])
        nested = decided(lambda: decided(lambda: agreed(processes())))
        try:
            decided(lambda: 1 / 0)
        except Exception as error:
            return value, len(calls), nested, str(error)

    first, second = together(2, tmp_path, decide)
    assert first == ({"widths": [1, 2], "alone": 1}, 1, 1, "division by zero")
    assert second == ({"widths": [1, 2], "alone": 1}, 0, 1, "division by zero")


def test_processes_that_differ_are_told_so(tmp_path):
    import torch.distributed as dist

    with pytest.raises(TrainError, match="2 processes have computed a plan each, and these differ"):
        together(2, tmp_path, lambda: alike(dist.get_rank(), "a plan"))
