"""Every method under two processes: the same channels go in both, and the network is the same to the bit."""

import pytest
import torch

import sentei
from sentei.distributed import is_leader, processes
from sentei.errors import BudgetError
from sentei.models import build_model
from sentei.runfiles import read_summary
from sentei.train import Recipe, fit
from tests.train.together import together

SHORT = Recipe(epochs=1, batch_size=64, limit=256, lr=0.02, bf16=False)
METHODS = {
    "taylor": {"steps": 2},
    "ista": {"sparse_epochs": 3, "growth": 20.0},
    "stagewise": {"supernet_epochs": 1, "evaluations": 20, "rounds": 1, "candidates": 2, "validation_images": 100},
    "abc": {"evaluations": 6, "validation_images": 100},
}


@pytest.fixture(scope="module")
def dense(data):
    torch.manual_seed(0)
    recipe = Recipe(epochs=3, batch_size=64, lr=0.1, bf16=False)
    return fit(build_model("digitsnet"), data, recipe, progress=False).model


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_cut_the_same_channels(dense, data, tmp_path, method):
    told: list[str] = []

    def pruned():
        found = sentei.prune(
            dense, data, method=method, recipe=SHORT, run_dir=tmp_path / "run", images=256, distill=True,
            say=told.append, budget=sentei.Budget(macs=0.7), **METHODS[method],
        )  # fmt: skip
        assert processes() == 2
        return found.plan.to_json(), found.model.state_dict(), found.summary, bool(told) == is_leader()

    (plan, weights, summary, spoke), (other, others, copied, silent) = together(2, tmp_path, pruned)
    assert plan == other
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    assert summary == copied
    assert spoke
    assert silent
    stored = read_summary(tmp_path / "run")
    assert stored["pruned"] == summary["pruned"]
    assert summary["pruned"]["macs"] <= 0.7 * summary["base"]["macs"]
    assert summary["images_trained"]["finetune"] % 256 == 0


def test_a_budget_out_of_reach_is_refused_by_all(dense, data, tmp_path):
    def refused():
        with pytest.raises(BudgetError) as caught:
            sentei.prune(dense, data, method="l1", budget=sentei.Budget(macs=2), run_dir=tmp_path / "run")
        return str(caught.value)

    first, second = together(2, tmp_path, refused)
    assert first == second
    assert not (tmp_path / "run").exists()
