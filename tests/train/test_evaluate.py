"""Evaluation and recalibration leave the model as they found it."""

from collections import namedtuple

import pytest
import torch
from torch import Tensor, nn

from sentei.data import Data, load_data
from sentei.errors import DataError, TrainError
from sentei.models import build_model
from sentei.tasks.classification import logits
from sentei.threads import available_cpus, data_workers, set_threads
from sentei.train import evaluate, recalibrate


class Constant(nn.Module):
    """Always says class 3, in a form of choice."""

    def __init__(self, form: str = "tensor") -> None:
        super().__init__()
        self.form = form

    def forward(self, x: Tensor) -> object:
        scores = torch.zeros(len(x), 10)
        scores[:, 3] = 1.0
        named = namedtuple("Output", ["logits", "aux"])
        forms = {
            "tensor": scores,
            "tuple": (scores, None),
            "dict": {"out": scores},
            "named": named(scores, None),
            "text": "no",
        }
        return forms[self.form]


@pytest.mark.parametrize("form", ["tensor", "tuple", "dict", "named"])
def test_accuracy_and_loss_are_exact(data: Data, form: str) -> None:
    y = torch.cat([y for _, y in data.test.batches(100)])
    result = evaluate(Constant(form), data.test, batch_size=77)
    share = float((y == 3).float().mean())
    assert result.value == pytest.approx(share)
    norm = float(torch.tensor([0.0] * 9 + [1.0]).logsumexp(0))
    assert result.figures["loss"] == pytest.approx(norm - share, abs=1e-5)
    assert result.images == 360
    assert evaluate(Constant(form), data.test, limit=50).images == 50


def test_model_without_scores_is_refused(data: Data) -> None:
    with pytest.raises(TrainError, match="returned a str"):
        logits(Constant("text")(torch.zeros(1)))
    with pytest.raises(TrainError, match="scores 4 classes"):
        evaluate(build_model("digitsnet", num_classes=4), data.test)
    with pytest.raises(DataError, match="empty split"):
        evaluate(Constant(), load_data("digits", val=0).val)


def test_evaluation_keeps_modes_and_statistics(data: Data) -> None:
    model = build_model("digitsnet").train()
    model.get_submodule("bn2").eval()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    evaluate(model, data.test)
    assert {n for n, m in model.named_modules() if not m.training} == {"bn2"}
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


def test_recalibration_is_the_average_over_the_batches(data: Data) -> None:
    model = build_model("digitsnet").eval()
    model.get_submodule("bn1").momentum = 0.3  # type: ignore[assignment]
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    batches = list(data.train.batches(100, limit=400))
    assert recalibrate(model, batches) == 4
    with torch.no_grad():
        maps = [model.get_submodule("conv1")(x) for x, _ in batches]
    mean = torch.stack([m.mean(dim=(0, 2, 3)) for m in maps]).mean(dim=0)
    var = torch.stack([m.var(dim=(0, 2, 3)) for m in maps]).mean(dim=0)
    torch.testing.assert_close(model.get_buffer("bn1.running_mean"), mean)
    torch.testing.assert_close(model.get_buffer("bn1.running_var"), var)
    assert model.get_submodule("bn1").momentum == 0.3
    assert not any(m.training for m in model.modules())
    assert all(torch.equal(weights[n], p) for n, p in model.named_parameters())


def test_recalibration_is_repeatable_and_keeps_dropout_off(data: Data) -> None:
    model = nn.Sequential(nn.Dropout(0.5), build_model("digitsnet")).train()
    batches = list(data.train.batches(100, limit=300))
    recalibrate(model, batches)
    first = {n: b.clone() for n, b in model.named_buffers()}
    recalibrate(model, iter([x for x, _ in batches]))
    assert all(torch.equal(first[n], b) for n, b in model.named_buffers())
    assert all(m.training for m in model.modules())


def test_recalibration_without_norms_or_data_changes_nothing(data: Data, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "sentei"):
        assert recalibrate(nn.Sequential(nn.Conv2d(1, 3, 3)), data.val.batches(50)) == 0
    assert "no BatchNorm" in caplog.text
    model = build_model("digitsnet")
    recalibrate(model, data.val.batches(50))
    before = {n: b.clone() for n, b in model.named_buffers()}
    with pytest.raises(DataError, match="at least one batch"):
        recalibrate(model, [])
    with pytest.raises(TrainError, match="not finite"):
        recalibrate(model, [torch.full((4, 1, 8, 8), float("nan"))])
    assert all(torch.equal(before[n], b) for n, b in model.named_buffers())
    assert model.get_submodule("bn1").momentum == 0.1


def test_threads_respect_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        assert set_threads() == before
        monkeypatch.delenv("OMP_NUM_THREADS")
        assert 1 <= set_threads() <= available_cpus()
        assert set_threads(1) == 1
    finally:
        torch.set_num_threads(before)
    assert data_workers(0) == 0
    assert 1 <= data_workers() <= available_cpus()
