"""`sentei fidelity`: rank correlations, structures in the band, resuming, and what is not looked at."""

import json

import numpy as np
import pytest
import torch
from scipy import stats

import sentei
from sentei.cli import main
from sentei.errors import ConfigError
from sentei.methods.stagewise.fidelity import PROXIES, Fidelity, correlation, measure_fidelity
from sentei.plan import Constraints
from sentei.report.scatter import scatter
from sentei.runs import Run
from sentei.train import Recipe

QUICK = {
    "structures": 4, "supernet_epochs": 1, "table_images": 60, "calibration_images": 128, "validation_images": 60,
    "band": 0.05,
}  # fmt: skip
RECIPE = Recipe(epochs=2, batch_size=64, lr=0.05, limit=128)
FREE = Constraints(round_to=1, max_ratio=0.9)
HALF = sentei.Budget(macs=0.5)


def measured(three, data, run=None, **options):
    how = Fidelity(**{**QUICK, **options})
    return measure_fidelity(three, data, how, recipe=RECIPE, budget=HALF, constraints=FREE, run=run)


def test_every_proxy_is_held_against_real_trainings(three, data):
    found = measured(three, data, structures=3, across=1, seeds=2)
    full = sentei.trace(three, torch.zeros(1, 1, 8, 8)).cost().macs
    assert set(found["proxies"]) == set(PROXIES)
    rows = found["structures"]
    assert [r["band"] for r in rows] == [True] * 3 + [False]
    assert all(abs(r["macs"] / (0.5 * full) - 1) <= 0.05 for r in rows if r["band"])
    assert len({tuple(r["widths"]) for r in rows}) == 4
    assert all(len(r["real"]) == 2 and 0 <= min(r["real"]) <= 1 for r in rows)
    real = np.array([np.mean(r["real"]) for r in rows])
    for name, p in found["proxies"].items():
        said = np.array([r[name] for r in rows])
        assert len(set(said)) > 1, name
        if np.ptp(real[:3]) and np.ptp(said[:3]):
            assert p["tau"] == pytest.approx(stats.kendalltau(said[:3], real[:3]).statistic)
        assert p["low"] <= p["high"]
    assert -1 <= found["agreement"] <= 1
    json.dumps(found)


@pytest.mark.slow
def test_structures_can_be_trained_from_scratch(three, data):
    inherited = measured(three, data, proxies=("recalibrate",))
    scratch = measured(three, data, proxies=("recalibrate",), start="scratch")
    pairs = list(zip(inherited["structures"], scratch["structures"], strict=True))
    assert all(a["widths"] == b["widths"] for a, b in pairs)
    assert np.mean([a["real"] for a, _ in pairs]) > np.mean([b["real"] for _, b in pairs])


@pytest.mark.slow
def test_a_killed_comparison_goes_on_to_the_same_result(three, data, tmp_path, monkeypatch):
    proxies = ("stagewise", "recalibrate")
    expected = measured(three, data, proxies=proxies)
    train, count = sentei.search.Train.__call__, [0]

    def dying(self, widths, share=1.0):
        count[0] += 1
        if count[0] == 3:
            raise KeyboardInterrupt
        return train(self, widths, share)

    monkeypatch.setattr(sentei.search.Train, "__call__", dying)
    with pytest.raises(KeyboardInterrupt), Run.open(tmp_path / "run", {}) as run:
        measured(three, data, run, proxies=proxies)
    monkeypatch.undo()
    trained = []
    monkeypatch.setattr(sentei.search.Train, "__call__", lambda *a: trained.append(1) or train(*a))
    with Run.open(tmp_path / "run", {}) as run:
        found = measured(three, data, run, proxies=proxies)
    assert len(trained) == 2
    assert found["structures"] == expected["structures"]
    assert found["proxies"] == expected["proxies"]


def test_the_test_images_are_never_read(three, data, monkeypatch):
    kind, batches = type(data.test), type(data.test).batches

    def read(self, *args, **kwargs):
        assert self is not data.test, "the test split was read"
        return batches(self, *args, **kwargs)

    monkeypatch.setattr(kind, "batches", read)
    measured(three, data, proxies=("stagewise-distance",))


def test_correlations():
    exact = correlation(np.arange(8.0), np.arange(8.0) ** 2)
    assert [exact[k] for k in ("tau", "rho", "high")] == pytest.approx([1, 1, 1])
    assert correlation(np.arange(8.0), -np.arange(8.0))["tau"] == pytest.approx(-1)
    assert correlation(np.ones(5), np.arange(5.0)) == {"tau": 0, "low": 0, "high": 0, "rho": 0}
    noisy = correlation(np.arange(12.0), np.array([2, 1, 0, 3, 5, 4, 8, 6, 7, 11, 9, 10.0]))
    assert -1 <= noisy["low"] < noisy["tau"] < noisy["high"] <= 1


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"structures": 2}, "structures is 2; expected 3"),
        ({"band": 0.0}, "band is 0.0"),
        ({"proxies": ("magic",)}, "proxies are .*expected some of stagewise"),
        ({"start": "warm"}, "start is 'warm'"),
        ({"executor": "here", "processes": 2}, "processes is 2, but structures are measured in this process"),
    ],
)
def test_bad_settings_are_refused(options, text):
    with pytest.raises(ConfigError, match=text):
        Fidelity(**options)


def test_a_band_that_holds_too_few_structures_is_refused(three, data):
    narrow = Constraints(round_to=1, keep=("a.*", "b.*"))
    with pytest.raises(ConfigError, match="of 9 structures were found within 0.0% of the budget"):
        measure_fidelity(three, data, Fidelity(structures=9, band=0.0001), recipe=RECIPE,
                         budget=sentei.Budget(macs=0.97), constraints=narrow)  # fmt: skip


def test_the_scatter_plot_is_an_svg_with_every_point():
    from xml.etree import ElementTree

    text = scatter({"a<b": ([1, 2, 3], [4, 5, 6]), "c": ([1, 1, 1], [4, 5, 6])}, title="t & u", xlabel="x", ylabel="y",
                   hollow=[False, True, False], notes={"c": "tau +0.00"})  # fmt: skip
    root = ElementTree.fromstring(text)
    circles = [e for e in root.iter() if e.tag.endswith("circle")]
    assert len(circles) == 6
    assert [c.get("fill") for c in circles].count("none") == 2


def test_the_command_writes_a_run_that_resume_shows(tmp_path, capsys):
    base, run = str(tmp_path / "base"), str(tmp_path / "run")
    assert main(["train", "digitsnet", "--data", "digits", "--epochs", "2", "--limit", "256", "--run", base]) == 0
    command = ["fidelity", base, "--structures", "3", "--supernet-epochs", "1", "--epochs", "1", "--limit", "128",
               "--round-to", "1", "--proxies", "stagewise", "recalibrate", "--band", "0.05"]  # fmt: skip
    assert main([*command, "--run", run]) == 0
    told = capsys.readouterr().out
    assert "How each proxy ranks them" in told
    assert (tmp_path / "run" / "fidelity.svg").read_text().startswith("<svg")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["verb"] == "fidelity"
    assert main(["resume", run]) == 0
    assert "is finished already" in capsys.readouterr().out
    assert main([*command, "--run", run]) == 2


def test_the_command_line_knows_the_options_of_the_method(capsys):
    with pytest.raises(SystemExit):
        main(["prune", "--method", "stagewise", "--help"])
    told = capsys.readouterr().out
    for option in ("--stages", "--supernet-epochs", "--interfaces", "--rule", "--start", "--supernet"):
        assert option in told
