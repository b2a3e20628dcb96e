"""Comparisons: the statistics have known answers, and tables and warnings say what the runs say."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from scipy import stats

from sentei.answers import packed
from sentei.comparison.compare import TRAINING
from sentei.comparison.file import Comparison
from sentei.comparison.finished import Row, rows_of, warnings_of
from sentei.comparison.planned import in_workers
from sentei.comparison.results import results_of, title
from sentei.comparison.statistics import Spread, binomial_error, holm, paired
from sentei.comparison.tables import comparison_tables, remarks, runs_table, seen, timed
from sentei.errors import ConfigError
from sentei.methods import METHODS
from sentei.methods.abc import Abc
from sentei.methods.common.method import Workers
from sentei.runfiles import write_config
from sentei.sealed import sealed_json
from sentei.speed.benchfile import as_file

PERCENT = {"name": "accuracy", "lower_is_better": False, "percent": True}
RMSE = {"name": "rmse", "lower_is_better": True, "percent": False}


# -- statistics


def test_spread():
    assert Spread.of([]) is None
    assert Spread.of([0.5]) == Spread(0.5, None, 1)
    assert Spread.of([1.0, 2.0, 3.0, 4.0]) == Spread(2.5, pytest.approx(math.sqrt(5 / 3)), 4)


def test_without_a_test_set_it_is_the_paired_t_test():
    first, second = [0.91, 0.93, 0.90, 0.95], [0.90, 0.90, 0.91, 0.92]
    found, known = paired(first, second), stats.ttest_rel(first, second)
    low, high = known.confidence_interval(0.95)
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert found.p == pytest.approx(known.pvalue)
    assert found.mean == pytest.approx(0.015)
    assert found.test_error is None


def test_the_interval_by_hand():
    """Three differences of 1, 2 and 3 points: mean 2, standard error 1 / sqrt(3), t of 2 degrees 4.303."""
    found = paired([0.91, 0.92, 0.93], [0.90, 0.90, 0.90])
    assert found.mean == pytest.approx(0.02)
    assert found.seed_error == pytest.approx(0.01 / math.sqrt(3))
    assert found.high == pytest.approx(0.02 + 4.302653 * 0.01 / math.sqrt(3), abs=1e-7)


def test_where_seeds_agree_the_test_images_decide():
    """Differences without any spread: only 10,000 images are left to doubt, by a normal distribution."""
    found = paired([0.92, 0.92, 0.92], [0.90, 0.90, 0.90], images=10_000)
    error = math.sqrt((0.92 * 0.08 + 0.90 * 0.10) / 10_000)
    assert found.test_error == pytest.approx(error)
    assert found.high == pytest.approx(0.02 + 1.959964 * error, abs=1e-6)
    assert found.p == pytest.approx(2 * stats.norm.sf(0.02 / error), rel=1e-6)


def test_one_seed_has_no_interval():
    found = paired([0.95], [0.90], images=400)
    assert (found.low, found.high, found.p, found.seed_error) == (None, None, None, None)
    assert found.mean == pytest.approx(0.05)
    assert found.test_error == pytest.approx(math.hypot(binomial_error(0.95, 400), binomial_error(0.9, 400)))


@pytest.mark.parametrize(("gap", "p"), [(0.0, 1.0), (0.5, 0.0)])
def test_equal_differences_without_a_test_set(gap, p):
    found = paired([0.5 + gap] * 3, [0.5] * 3)
    assert (found.low, found.high, found.p) == (gap, gap, p)


def test_what_does_not_pair_is_refused():
    with pytest.raises(ValueError, match="2 and 1 values"):
        paired([0.1, 0.2], [0.1])


shares = st.lists(st.floats(0, 1), min_size=2, max_size=8)


@given(shares, st.data(), st.integers(10, 100_000))
def test_the_interval_holds_the_mean_and_images_only_widen_it(first, draw, images):
    second = draw.draw(st.lists(st.floats(0, 1), min_size=len(first), max_size=len(first)))
    alone, both = paired(first, second), paired(first, second, images)
    for found in (alone, both):
        assert found.low <= found.mean <= found.high
        assert found.high - found.mean == pytest.approx(found.mean - found.low, abs=1e-9)
        assert 0 <= found.p <= 1
    assert math.hypot(both.seed_error, both.test_error) >= alone.seed_error
    other = paired(second, first, images)
    assert other.mean == pytest.approx(-both.mean)
    assert (other.low, other.high) == (pytest.approx(-both.high), pytest.approx(-both.low))


@given(shares, st.data(), st.one_of(st.none(), st.integers(10, 100_000)))
def test_p_and_interval_say_the_same(first, draw, images):
    """Whoever is significant has an interval on one side of zero, and the other way round."""
    second = draw.draw(st.lists(st.floats(0, 1), min_size=len(first), max_size=len(first)))
    found = paired(first, second, images)
    ends = min(abs(found.low), abs(found.high))
    if ends > 1e-9:  # on the border both are right
        assert (found.p < 0.05) == (found.low > 0 or found.high < 0)


def test_intervals_cover_what_they_promise():
    """Of simulated comparisons of two equal methods, at least 95 in 100 intervals hold the truth."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(400):
        first, second = (rng.binomial(500, 0.9, 3) / 500 + rng.normal(0, 0.01, 3) for _ in range(2))
        found = paired(first, second, images=500)
        held += found.low <= 0 <= found.high
    assert held / 400 >= 0.95


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == [pytest.approx(v) for v in (0.03, 0.06, 0.06, 0.02)]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_raises_in_order_and_stays_a_probability(values):
    raised = holm(values)
    assert all(p <= q <= 1 for p, q in zip(values, raised, strict=True))
    assert all(q <= min(1, p * len(values)) for p, q in zip(values, raised, strict=True))
    order = np.argsort(values, kind="stable")
    assert np.all(np.diff(np.array(raised)[order]) >= 0)


# -- a comparison in words


def comparison(values, metric=PERCENT, counted=None, budgets=(0.5,), images=None) -> Comparison:
    """One with these test figures by method, the same at each budget; None stands for a run that failed."""
    methods, seeds = list(values), range(max(map(len, values.values())))
    plan = {
        "model": "net", "data": "digits", "task": "classification", "metric": metric, "total_images": 100,
        "epoch_images": 50, "batch_images": 10, "counted": {"test": counted, "val": None}, "added": False, "shared": {},
        "dense": {"test": 0.95, "val": 0.9, "macs": 1000, "params": 100}, "seeds": list(seeds),
        "methods": {m: {"method": m, "settings": {}} for m in methods}, "budgets": [{"macs": b} for b in budgets],
    }  # fmt: skip
    runs = [
        {"folder": f"{m}-{b}-s{s}", "method": m, "budget": {"macs": b}, "seed": s, **state(values[m][s], images)}
        for s in seeds for b in budgets for m in methods if s < len(values[m])
    ]  # fmt: skip
    return Comparison(Path("x"), plan, runs)


def state(value, images):
    if value is None:
        return {"state": "failed", "error": "no such width", "result": None}
    result = {"test": value, "val": value, "macs": 500, "macs_share": 0.5, "params": 50, "params_share": 0.5,
              "seconds": 3.0, "images": images or {"finetune": 100, "total": 100}}  # fmt: skip
    return {"state": "finished", "error": None, "result": result}


def test_better_worse_and_not_told_apart():
    found = comparison({
        "uniform": [0.90, 0.91, 0.92], "a": [0.93, 0.942, 0.949], "b": [0.90, 0.915, 0.92], "c": [0.85, 0.861, 0.87],
    })  # fmt: skip
    assert found.sentences == [
        "a at 50% of the MACs is better than uniform: +3.03 points, interval +2.65 .. +3.41, 3 seeds.",
        "b at 50% of the MACs is not told apart from uniform: +0.17 points, interval -0.55 .. +0.88, 3 seeds.",
        "c at 50% of the MACs is worse than uniform: -4.97 points, interval -5.11 .. -4.82, 3 seeds.",
    ]
    by_method = {r["method"]: r for r in found.results}
    assert by_method["uniform"]["difference"] is None
    assert by_method["uniform"]["test"]["mean"] == pytest.approx(0.91)
    assert by_method["a"]["difference"]["p_holm"] == pytest.approx(2 * by_method["a"]["difference"]["p"])


def test_a_small_test_set_takes_back_what_seeds_seemed_to_show():
    values = {"uniform": [0.90, 0.91, 0.92], "a": [0.93, 0.942, 0.949]}
    assert "better" in comparison(values, counted=100_000).sentences[0]
    assert "not told apart" in comparison(values, counted=360).sentences[0]


def test_known_answers_tell_apart_what_accuracies_do_not():
    images = np.arange(1000)
    right = [images < count for count in (900, 905, 910)]
    better = [r | (images >= 990) for r in right]
    found = comparison({"uniform": [r.mean() for r in right], "a": [r.mean() for r in better]}, counted=1000)
    assert "not told apart" in found.sentences[0]
    for run in found.runs:
        run["result"]["answers"] = packed((right if run["method"] == "uniform" else better)[run["seed"]])
    assert "a at 50% of the MACs is better than uniform: +1.00 points" in found.sentences[0]
    found.runs[0]["result"]["answers"] = None
    assert "not told apart" in found.sentences[0]


def test_where_less_is_better():
    found = comparison({"uniform": [3.0, 3.1, 3.2], "a": [2.0, 2.1, 2.25]}, RMSE)
    assert found.sentences == [
        "a at 50% of the MACs is better than uniform: -0.9833, interval -1.055 .. -0.9116, 3 seeds."
    ]


def test_many_comparisons_make_a_single_success_less_sure():
    uniform = [0.90, 0.91, 0.92]
    lucky = [0.905, 0.918, 0.924]
    alone = comparison({"uniform": uniform, "lucky": lucky})
    crowd = comparison({"uniform": uniform, "lucky": lucky, **{f"m{i}": [0.90, 0.912, 0.919] for i in range(5)}})
    assert "is better than uniform" in alone.sentences[0]
    assert "is not told apart from uniform: +0.57" in crowd.sentences[0]
    assert "among 6 comparisons one like this comes about by chance (p 0.042, Holm 0.25)" in crowd.sentences[0]


def test_one_seed_says_so():
    found = comparison({"uniform": [0.90], "a": [0.95]}, counted=400)
    assert found.sentences == [
        "a at 50% of the MACs is not told apart from uniform: +5.00 points, 1 seed, which says nothing about the next; "
        "the test images alone leave ± 3.63 points open."
    ]


def test_only_seeds_that_both_have_finished_are_paired_and_failures_are_told():
    found = comparison({"uniform": [0.90, 0.91, None], "a": [0.93, 0.95, 0.99], "b": [None, None, None]})
    a, b = found.results[1:]
    assert (a["difference"]["count"], a["finished"]) == (2, 3)
    assert a["difference"]["mean"] == pytest.approx(0.035)
    assert b["sentence"] == "b at 50% of the MACs: nothing to compare with uniform: no such width"
    text = " ".join(remarks(found))
    assert "uniform at 50% of the MACs failed: no such width" in text
    assert "b at 50% of the MACs failed: no such width" in text


def test_without_test_images_validation_decides():
    found = comparison({"uniform": [0.90, 0.91], "a": [0.93, 0.95]})
    for run in found.runs:
        run["result"]["test"] = None
    assert found.figure == "val"
    assert found.results[1]["difference"]["mean"] == pytest.approx(0.035)
    assert "val accuracy" in text_of(comparison_tables(found)[0])


def test_unequal_totals_are_a_warning():
    found = comparison({"uniform": [0.90, 0.91], "a": [0.93, 0.95]})
    assert "Each run trained on 100 images in all" in " ".join(remarks(found))
    found.runs[0]["result"]["images"] = {"finetune": 80, "total": 80}
    assert "Warning: the runs did not train on equally many images: 80 to 100." in remarks(found)


def test_the_table_of_a_comparison():
    images = {"search": 0, "sparse": 0, "supernet": 40, "finetune": 60, "total": 100}
    found = comparison({"uniform": [0.9, 0.91], "a": [0.93, 0.942]}, budgets=(0.5, 0.3), images=images)
    tables = [text_of(t) for t in comparison_tables(found)]
    assert "net on digits, 30% of the MACs" in tables[1]
    for text in ("dense", "95.00%", "90.50%", "± 0.71", "+3.10", "50.0%", "40 supernet", "60 tuning"):
        assert text in tables[0], text


def text_of(table) -> str:
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table)
    console.file.close()
    return console.export_text()


@pytest.mark.parametrize(
    ("budget", "words"),
    [({"macs": 0.5}, "50% of the MACs"), ({"params": 0.333}, "33.3% of the parameters"),
     ({"macs": 2e7}, "20,000,000 MACs"), ({"latency_ms": 4.5}, "4.5 ms"),
     ({"latency": 0.5, "params": 0.4}, "50% of the milliseconds and 40% of the parameters"),
     ({"memory": 2048}, "2,048 bytes of live activations")],
)  # fmt: skip
def test_budgets_in_words(budget, words):
    assert title(budget) == words


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.budgeted])
def test_the_default_total_has_room_for_every_method_as_it_comes(name, data):
    needed = sum(METHODS[name].resolved().trains_on(data, TRAINING).values())
    assert needed < TRAINING.epochs * data.epoch_images(TRAINING.batch_size)


# -- finished runs


def summary(**changes):
    base = {
        "verb": "prune", "task": "classification", "metric": PERCENT, "model": "digitsnet", "data": "digits",
        "method": "taylor", "base": {"accuracy": 0.96, "val_accuracy": 0.95, "macs": 1000, "params": 100},
        "pruned": {"accuracy": 0.9, "val_accuracy": 0.91, "macs": 500, "params": 40},
        "after_cut": {"val_accuracy": 0.5}, "check": {"max_error": 0.0}, "widths": {}, "note": "", "warnings": [],
        "seconds": {"finetune": 3.0, "total": 4.5},
        "images_trained": {"search": 0, "sparse": 0, "supernet": 0, "finetune": 1200, "total": 1200},
        "data_description": {"train": 1257, "val": 180, "test": 360, "content": "abc"},
    }  # fmt: skip
    return {**base, **changes}


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Writes a run: its summary, its config, and what `sentei bench` measured."""
    monkeypatch.chdir(tmp_path)

    def write(name, found, base="f00", entries=()):
        folder = Path(name)
        folder.mkdir()
        write_config(folder, {"command": None, "resolved": {"base_sha256": base}})
        (folder / "summary.json").write_bytes(sealed_json(found))
        if entries:
            (folder / "bench.json").write_bytes(sealed_json(as_file(entries)))
        return name

    return write


def entry(ms, when="2026-12-01", cpu="EPYC", **changes):
    conditions = {"runtime": "onnxruntime", "threads": 1, "batch": 1, "device": "cpu", "machine": {"cpu": cpu}}
    costs = {"macs": 1000, "params": 100, "memory_bytes": 4000}
    networks = [
        {"name": "dense", "role": "dense", "ms": 2 * ms, "ms_low": 2 * ms, "ms_high": 2 * ms, **costs},
        {"name": "x", "role": "small", "ms": ms, "ms_low": ms, "ms_high": ms, **costs},
    ]
    compared = {"speedup": 2.0, "speedup_low": 1.9, "speedup_high": 2.1, "macs_kept": 0.5, "efficiency": 1.0}
    measured = {"clock": "thread", "versions": {}, "rounds": 20, "sure": True, "layers": []}
    return {"when": when, "networks": networks, **compared, **measured, **conditions, **changes}


def test_a_row_says_what_the_summary_says(made):
    dense, row = rows_of([made("half", summary())])
    assert (dense.name, dense.role, dense.test, dense.macs_share) == ("digitsnet, dense", "dense", 0.96, 1.0)
    assert (row.name, row.test, row.val, row.macs_share, row.params_share) == ("half", 0.9, 0.91, 0.5, 0.4)
    assert row.test_error == pytest.approx(math.sqrt(0.09 / 360))
    assert (row.seconds, row.images["total"], row.latency) == (4.5, 1200, None)
    assert warnings_of([dense, row]) == []
    assert seen([dense, row]) == (
        "All on digits: 1,257 training, 180 validation, 360 test images, the same content (checksum abc)."
    )
    text = text_of(runs_table([dense, row]))
    for part in ("96.00%", "90.00%", "± 1.58", "50.0%", "40.0%", "1.20 k"):
        assert part in text, part
    assert "latency" not in text


def test_how_far_a_network_is_from_the_dense_one(made):
    before = np.arange(1000) < 960
    after = before & (np.arange(1000) >= 60)
    told = {"base": packed(before), "pruned": packed(after)}
    dense, row = rows_of([made("half", summary(answers=told))])
    assert (dense.to_dense, row.to_dense) == (None, pytest.approx(-0.06))
    assert row.to_dense_error == pytest.approx(math.sqrt(61 - 60**2 / 1002) / 1002)
    text = text_of(runs_table([dense, row]))
    assert "-6.00" in text
    assert "± 0.76" in text
    (_, old) = rows_of([made("old", summary())])
    assert (old.to_dense, old.to_dense_error) == (pytest.approx(-0.06), None)


def test_a_training_stands_for_the_dense_network(made):
    training = {
        "verb": "train", "task": "classification", "metric": PERCENT, "model": "digitsnet", "data": "digits",
        "accuracy": 0.96, "val_accuracy": 0.95, "macs": 1000, "params": 100, "seconds": {"train": 9.0, "evaluate": 1.0},
        "images_trained": {"train": 5000, "total": 5000},
        "data_description": {"train": 1257, "val": 180, "test": 360, "content": "abc"},
    }  # fmt: skip
    rows = rows_of([made("base", training), made("half", summary())])
    assert [(r.name, r.role, r.seconds) for r in rows] == [("base", "dense", 10.0), ("half", "pruned", 4.5)]
    assert warnings_of(rows) == []
    other = rows_of([made("other", {**training, "accuracy": 0.8}), "half"])
    assert [r.name for r in other] == ["digitsnet, dense", "other", "half"]
    assert "Not the network that was pruned: other" in warnings_of(other)


def test_other_data_networks_and_metrics_are_warned_of(made):
    described = {"train": 1257, "val": 180, "test": 300, "content": "xyz"}
    figures = {"rmse": 2.0, "val_rmse": 2.1, "macs": 500, "params": 40}
    other = summary(
        data_description=described, task="depth", metric=RMSE, base=figures, pruned=figures, after_cut={"val_rmse": 3.0}
    )
    rows = rows_of([made("a", summary()), made("b", other, base="bad")])
    told = warnings_of(rows)
    assert told[0].startswith("The data differ, so that the metrics say nothing about each other: digits, content abc")
    assert "digits, content xyz (digitsnet, dense, b)" in told[0]
    assert told[1].startswith("The metrics differ and cannot be compared: accuracy")
    assert told[2].startswith("The dense networks differ")
    assert "weights bad" in told[2]
    assert rows[-1].test_error is None
    assert seen(rows) is None
    assert "2 rmse" in text_of(runs_table(rows))


def test_latencies_are_the_newest_under_conditions_that_all_share(made):
    newest = entry(9.0, "2026-12-03", runtime="openvino")
    a = made("a", summary(), entries=[entry(3.0), entry(2.0, "2026-12-02"), newest])
    b = made("b", summary(), entries=[entry(4.0), entry(5.0, "2026-12-04", cpu="Xeon")])
    rows = rows_of([a, b, made("c", summary())])
    assert [r.latency and r.latency["ms"] for r in rows] == [4.0, 2.0, 4.0, None]
    assert warnings_of(rows) == []
    assert timed(rows) == "Latency: onnxruntime, 1 thread, batch 1, cpu, by `sentei bench`."
    assert "2 ms" in text_of(runs_table(rows))


def test_latencies_that_were_not_measured_alike_are_warned_of(made):
    rows = rows_of([
        made("a", summary(), entries=[entry(3.0)]), made("b", summary(), entries=[entry(4.0, threads=2)]),
    ])  # fmt: skip
    (told,) = warnings_of(rows)
    assert told.startswith("The latencies were not measured alike and cannot be compared: onnxruntime, 1 thread")
    assert timed(rows) is None


def test_a_teacher_for_some_only_is_warned_of(made):
    old, alone = made("old", summary()), made("alone", summary(taught=False))
    taught = made("taught", summary(taught=True))
    (told,) = warnings_of(rows_of([old, alone, taught]))
    assert told.startswith("Only some were taught by the dense network")
    assert f"not taught ({alone}); taught ({taught})" in told
    assert warnings_of(rows_of([old, taught])) == []


def budgeted(ms):
    return summary(
        latency={"runtime": "onnxruntime", "threads": 1, "dense_ms": 8.0, "small_ms": ms, "predicted_ms": ms},
        machine={"cpu": "EPYC", "threads": 2, "device": "cpu"},
    )  # fmt: skip


def test_milliseconds_of_a_budget_stand_where_nobody_has_measured_again(made):
    a, b = made("a", budgeted(3.0)), made("b", budgeted(4.0), entries=[entry(5.0)])
    rows = rows_of([a, b])
    assert [r.latency["ms"] for r in rows] == [8.0, 3.0, 4.0]
    assert warnings_of(rows) == []
    assert timed(rows) == "Latency: onnxruntime, 1 thread, batch 1, cpu, measured for its budget."
    assert rows_of([b])[-1].latency["ms"] == 5.0
    both = rows_of([a, made("c", summary(), entries=[entry(2.0)])])
    (told,) = warnings_of(both)
    assert "cpu, measured for its budget, EPYC (digitsnet, dense, a)" in told


@pytest.mark.parametrize("text", ["", "[]", '{"entries": [1]}', '{"entries": [{"runtime": "x"}]}'])
def test_a_damaged_bench_file_is_as_none(made, text):
    made("a", summary())
    Path("a/bench.json").write_text(text)
    assert [r.latency for r in rows_of(["a"])] == [None, None]


def test_a_run_of_an_earlier_version_has_no_count(made):
    old = summary()
    del old["images_trained"]
    rows = rows_of([made("a", old)])
    assert rows[-1].images is None
    assert isinstance(replace(rows[-1], images={"total": 5}), Row)


def test_results_do_not_depend_on_the_order_of_runs():
    found = comparison({"uniform": [0.90, 0.91, 0.92], "a": [0.93, 0.942, 0.949]})
    turned = results_of(found.plan, found.runs[::-1])
    assert turned[1]["sentence"] == found.results[1]["sentence"]
    assert turned[1]["test"]["mean"] == pytest.approx(found.results[1]["test"]["mean"])


def test_workers_go_to_the_methods_that_measure_structures():
    workers = Workers(executor="process", processes=2)
    contenders = {
        "l1": ("l1", {}), "abc": ("abc", {"sources": 4}), "own": ("abc", {"processes": 3, "executor": "process"}),
        "stagewise": ("stagewise", {}), "made": (Abc(executor="process", processes=5), {}),
    }  # fmt: skip
    found = {label: options for label, (_, options) in in_workers(contenders, workers).items()}
    asked = {"executor": "process", "processes": 2}
    assert found == {
        "l1": {}, "abc": {**asked, "sources": 4}, "own": {"processes": 3, "executor": "process"}, "stagewise": asked,
        "made": {},
    }  # fmt: skip
    assert in_workers(contenders, Workers()) == contenders
    with pytest.raises(ConfigError, match="executor is 'process', but none of l1, taylor measures structures"):
        in_workers({"l1": ("l1", {}), "taylor": ("taylor", {})}, workers)
    with pytest.raises(ConfigError, match="processes is 2, but structures are measured in this process"):
        Workers(processes=2)
