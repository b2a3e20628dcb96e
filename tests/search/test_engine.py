"""The loop: journal and resume, failures, halving, and evaluators on a real network."""

import json

import numpy as np
import pytest
import torch

import sentei
from sentei.data import load_data
from sentei.errors import ConfigError, DataError, SearchError
from sentei.models import build_model
from sentei.search import (
    Colony,
    Inheritance,
    Recalibrate,
    Search,
    Store,
    Train,
    open_executor,
)
from sentei.search.testing import small_space
from sentei.train import Recipe, evaluate
from sentei.train.journal import Journal
from tests.search.fakes import Fake


def run(evaluator, journal=None, evaluations=30, rounds=1, watch=None):
    strategy = Colony(small_space(budget=True), evaluations=evaluations, seed=2)
    with open_executor("here", evaluator) as executor:
        return Search(strategy, Store(evaluator.settings, journal), executor, watch, rounds).run()


def plain(path):
    """The records of a journal without what the clock says."""
    records = map(json.loads, path.read_text().splitlines())
    return [{k: v for k, v in r.items() if k not in ("seconds", "sha256")} for r in records]


@pytest.mark.parametrize("stop", [1, 9, 23])
def test_an_interrupted_search_goes_on_and_ends_with_the_same_journal(tmp_path, stop):
    whole = run(Fake(tmp_path), Journal(tmp_path / "whole"))
    records = plain(tmp_path / "whole")
    assert [r["number"] for r in records] == list(range(30))
    torn = (tmp_path / "whole").read_bytes().splitlines(keepends=True)
    (tmp_path / "part").write_bytes(b"".join(torn[:stop]) + torn[stop][:20])  # killed while it wrote
    heard = []

    class Heard:
        def began(self, batch, cached): ...
        def told(self, batch, best): ...
        def evaluated(self, record):
            heard.append(record["number"])

    again = run(Fake(tmp_path), Journal(tmp_path / "part"), watch=Heard())
    assert heard == list(range(stop, 30))
    assert plain(tmp_path / "part") == records
    assert (again.levels, again.fitness) == (whole.levels, whole.fitness)
    assert again.report["curve"] == whole.report["curve"]


def test_a_finished_search_is_read_back_without_an_evaluation(tmp_path):
    first = run(Fake(tmp_path), Journal(tmp_path / "j"))
    dead = Fake(tmp_path, breaks=range(1000))
    assert run(dead, Journal(tmp_path / "j")).levels == first.levels


def test_other_evaluator_settings_share_nothing(tmp_path):
    store = Store({"a": 1}, Journal(tmp_path / "j"))
    store.add(np.array([1, 2]), 1.0, {"fitness": 0.5, "error": None})
    assert Store({"a": 1}, Journal(tmp_path / "j")).get(np.array([1, 2]), 1.0)["fitness"] == 0.5
    assert Store({"a": 1}, Journal(tmp_path / "j")).get(np.array([1, 2]), 0.5) is None
    assert Store({"a": 2}, Journal(tmp_path / "j")).get(np.array([1, 2]), 1.0) is None


def test_failures_are_noted_once_and_never_win(tmp_path):
    best = run(Fake(tmp_path)).fitness
    result = run(Fake(tmp_path, fails=(int(best),)), Journal(tmp_path / "j"))
    assert result.fitness < best
    errors = [r["error"] for r in plain(tmp_path / "j") if r["error"]]
    assert errors[:1] == ["the loss is no longer finite"]
    assert result.report["failed"] == len(errors)


def test_if_everything_fails_the_first_reason_is_given(tmp_path):
    with pytest.raises(SearchError, match=r"none of the first 8 structures .* ZeroDivisionError: oops"):
        run(Fake(tmp_path, breaks=range(1000)))


def test_halving_gives_the_better_half_more(tmp_path):
    result = run(Fake(tmp_path), Journal(tmp_path / "j"), evaluations=8, rounds=3)
    records = plain(tmp_path / "j")
    by_share = {share: [tuple(r["widths"]) for r in records if r["share"] == share] for share in (0.25, 0.5, 1.0)}
    assert {share: len(w) for share, w in by_share.items()} == {0.25: 8, 0.5: 4, 1.0: 2}
    best = sorted(by_share[0.25], key=sum)[-4:]
    assert sorted(by_share[0.5], key=sum) == best
    assert result.fitness == max(sum(w) for w in by_share[1.0])
    assert (result.report["evaluations"], result.report["measurements"]) == (8, 14)
    with pytest.raises(ConfigError, match="rounds is 0"):
        run(Fake(tmp_path), rounds=0)


def test_no_structure_wins_by_a_partial_effort(tmp_path):
    class Falling(Fake):
        def __call__(self, widths, share=1.0):
            return {"fitness": super().__call__(widths)["fitness"] * (2 - share)}

    result = run(Falling(tmp_path), Journal(tmp_path / "j"), evaluations=24, rounds=2)
    full = [r["fitness"] for r in plain(tmp_path / "j") if r["share"] == 1.0]
    assert result.fitness == max(full)


def test_what_need_not_last_is_tried_again_after_a_resume(tmp_path):
    run(Fake(tmp_path), Journal(tmp_path / "whole"))
    best = int(max(r["fitness"] for r in plain(tmp_path / "whole")))
    for kind, again in (("breaks", True), ("fails", False)):
        journal = tmp_path / kind
        assert run(Fake(tmp_path, **{kind: (best,)}), Journal(journal)).fitness < best
        assert (run(Fake(tmp_path), Journal(journal)).fitness == best) == again


@pytest.mark.parametrize("answer", [None, 0.5, {"accuracy": 0.5}, {"fitness": float("nan")}, {"fitness": float("inf")}])
def test_an_evaluator_that_answers_nonsense_is_told_so(tmp_path, answer):
    class Odd(Fake):
        def __call__(self, widths, share=1.0):
            return answer

    with pytest.raises(SearchError, match=r"the first failed with: the (evaluator returned|fitness is)"):
        run(Odd(tmp_path))


def test_numbers_of_any_kind_are_taken(tmp_path):
    class Kinds(Fake):
        def __call__(self, widths, share=1.0):
            return {"fitness": torch.tensor(float(widths.sum())), "other": np.float32(1)}

    assert run(Kinds(tmp_path), Journal(tmp_path / "j")).fitness == run(Fake(tmp_path)).fitness


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_model("digitsnet").eval()


@pytest.fixture(scope="module")
def graph(model):
    return sentei.trace(model, torch.zeros(1, 1, 8, 8))


def narrow(graph, share=0.6):
    return np.array([g.width if g.frozen else int(g.width * share) for g in graph.groups])


def test_recalibrate_measures_what_a_cut_and_recalibrated_network_reaches(model, graph, data):
    evaluator = Recalibrate(model, graph, data, calibration_images=500, validation_images=100)
    widths = narrow(graph)
    network = evaluator.network(widths)
    x, y = next(data.val.batches(100, limit=100))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=evaluator.bf16):
        expected = float((network(x).argmax(1) == y).float().mean())
    assert evaluator(widths)["fitness"] == pytest.approx(expected)
    assert evaluator(widths) == evaluator(widths)
    assert not torch.equal(network.bn1.running_mean, model.bn1.running_mean[: len(network.bn1.running_mean)])
    assert [g.width for g in sentei.trace(network, x[:1]).groups] == widths.tolist()


def test_train_makes_the_weights_of_its_fitness_again(model, graph, data):
    recipe = Recipe(epochs=2, batch_size=64, lr=0.05, schedule="constant", limit=256)
    evaluator = Train(model, graph, data, recipe)
    widths = narrow(graph)
    first, second = evaluator.network(widths), evaluator.network(widths)
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    measured = evaluate(first, data.val, bf16=recipe.autocast(data.device)).value
    assert evaluator(widths)["fitness"] == measured
    assert evaluator(widths)["fitness"] != evaluator(widths, 0.5)["fitness"]


def test_training_never_sees_test_images(model, graph, data):
    evaluator = Train(model, graph, data, Recipe(epochs=1))
    assert evaluator.data.test is data.val


def test_inheritance_is_deterministic_and_keeps_batch_norm(model, graph):
    widths = narrow(graph)
    for how in ("l1", "bn_scale", "random"):
        assert Inheritance(model, graph, how, 1).plan(widths) == Inheritance(model, graph, how, 1).plan(widths)
    random = Inheritance(model, graph, "random", 1)
    other = widths.copy()
    other[0] -= 1
    assert set(random.plan(other).keep["conv1"]) - set(random.plan(widths).keep["conv1"])
    assert Inheritance(model, graph, "random", 2).plan(widths) != random.plan(widths)
    drawn = np.concatenate([Inheritance(model, graph, "random", s).plan(widths).keep["conv1"] for s in range(60)])
    assert set(drawn) == set(range(graph.group("conv1").width))  # the last filter too
    plan = random.plan(widths)
    small = sentei.cut(model, graph, plan)
    assert torch.equal(small.bn1.weight, model.bn1.weight[torch.tensor(plan.keep["conv1"])])
    with pytest.raises(ConfigError, match="expected 'l1', 'bn_scale' or 'random'"):
        Inheritance(model, graph, "best")


def test_a_validation_split_that_is_too_small_is_refused(model, graph):
    small = load_data("digits", val=20)
    for make in (Recalibrate, lambda m, g, d: Train(m, g, d, Recipe())):
        with pytest.raises(DataError, match="has 20 images; a search needs 50 or more for 10 classes"):
            make(model, graph, small)
    with pytest.raises(DataError, match="3 validation images are asked for; a search needs 50"):
        Recalibrate(model, graph, load_data("digits"), validation_images=3)
    with pytest.raises(ConfigError, match="BatchNorm needs 32 or more"):
        Recalibrate(model, graph, load_data("digits"), calibration_images=1)
