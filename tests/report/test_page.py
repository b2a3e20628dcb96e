"""The page of a run and of a folder of runs: looked at in a browser, and held against what the runs say."""

import json
import re
import shlex
import shutil
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from sentei import Data, load
from sentei.errors import CheckpointError
from sentei.models import build_model
from sentei.report.blocks import Code, Facts, Figure, Table
from sentei.report.folder_page import comparable, curve_names, folder_page, points_of
from sentei.report.page import report
from sentei.report.reading import RunFiles
from sentei.report.run_page import run_page
from sentei.sealed import sealed_json
from sentei.speed.benchfile import as_file
from tests.report.conftest import METHODS
from tests.report.hostile import HOSTILE, LONG, benched, changed, reconfigured

LOOK = (Path(__file__).parent / "looking.js").read_text()
WAYS = [(400, "light"), (400, "dark"), (1400, "light"), (1400, "dark")]


def blocks_of(folder: Path, kind: type) -> list:
    return [b for s in run_page(RunFiles.read(folder)).sections for b in s.blocks if isinstance(b, kind)]


def chart_of(folder: Path, title: str):
    return next(b.chart for b in blocks_of(folder, Figure) if b.chart.title == title)


def table_of(folder: Path, caption: str) -> Table:
    return next(b for b in blocks_of(folder, Table) if b.caption == caption)


# -- in a browser


@pytest.fixture
def looked_at(browser, tmp_path):
    """What is wrong with a page at each width and in each theme, and how many charts it shows."""

    def look(html: str) -> tuple[list[str], int]:
        file = tmp_path / "page.html"
        file.write_text(html, encoding="utf-8")
        page, found, asked, charts = browser.new_page(), [], [], 0
        page.on("console", lambda message: found.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: found.append(f"error: {error}"))
        page.on("request", lambda request: asked.append(request.url))
        for width, theme in WAYS:
            page.set_viewport_size({"width": width, "height": 900})
            page.emulate_media(color_scheme=theme)
            page.goto(file.as_uri())
            for folded in (True, False):
                if not folded:
                    page.evaluate("document.querySelectorAll('details').forEach((d) => d.open = true)")
                seen = page.evaluate(LOOK)
                found += [f"{width} {theme}: {what}" for what in seen["found"]]
                charts = seen["charts"]
        page.close()
        found += [f"asked for {url}" for url in asked if url not in (file.as_uri(), "data:,")]
        return found, charts

    return look


@pytest.mark.parametrize(
    ("name", "charts"), [("base", 3), ("taylor", 6), ("abc", 3), ("ista", 4), ("stagewise", 7)]
)
def test_a_run_looks_right(name, charts, runs, looked_at):
    assert looked_at(report(runs / name)) == ([], charts)


def test_a_folder_looks_right(runs, looked_at):
    assert looked_at(report(runs)) == ([], 1)


def test_hostile_and_long_names_are_shown_as_they_are(copied, looked_at):
    """Names come from files: they are escaped, and long ones wrap."""
    folder, name = copied("ista"), HOSTILE + LONG
    changed(
        folder, model=name, data=name, method=name, note=name, warnings=[name], frozen={name: name},
        metric={"name": "accuracy", "lower_is_better": False, "percent": True}, widths={name: [8, 4], "b": [8, 8]},
        layers={name: [10, 5], f"{name}.a": [2_000_000_000, 1]}, machine={name: name},
    )  # fmt: skip
    reconfigured(folder, more={name: name})
    benched(folder, runtime=name, machine={"cpu": name})
    (folder / "small.onnx.export.json").write_text(json.dumps({"max_error": 1e-7, name: {name: name}}))
    other = shutil.copytree(folder, folder.parent / "other")
    benched(other, small=2.0, runtime=name, machine={"cpu": name})
    for html in (report(folder), report(folder.parent)):
        assert "<script" not in html
        assert "<img" not in html
        assert "&lt;script&gt;alert(" in html
        found, charts = looked_at(html)
        assert (found, charts > 0) == ([], True)


def test_in_print_everything_is_shown_in_dark_on_white(runs, browser, tmp_path):
    (tmp_path / "page.html").write_text(report(runs / "l1-s0"), encoding="utf-8")
    page = browser.new_page()
    page.goto((tmp_path / "page.html").as_uri())
    page.emulate_media(media="print", color_scheme="dark")
    hidden = "[...document.querySelectorAll('details *')].filter((e) => !e.checkVisibility()).length"
    assert page.evaluate(hidden) == 0
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.pdf().startswith(b"%PDF")
    page.close()


# -- as text


class Balance(HTMLParser):
    """Names of elements that are closed out of turn, or never."""

    VOID = {"meta", "link"}

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.faults: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)
        self.ids += [value for name, value in attrs if name == "id"]
        self.faults += [name for name, _ in attrs if name.startswith("on") or name in ("src", "href")]

    def handle_startendtag(self, tag, attrs):
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append(tag)


@pytest.mark.parametrize("name", ["base", "taylor", "abc", "ista", "stagewise", "."])
def test_the_page_is_well_formed_and_always_the_same(name, runs):
    html = report(runs / name)
    assert html == report(runs / name)
    found = Balance()
    found.feed(html)
    assert (found.faults, found.open) == (["href"], [])  # the empty icon, so that no browser asks for one
    assert len(found.ids) == len(set(found.ids))
    for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL):
        ElementTree.fromstring(svg)
    assert html.count("<caption>") == html.count("<table>")
    assert "://" not in html


def test_the_page_says_what_the_run_says(runs):
    folder = runs / "l1-s0"
    summary = json.loads((folder / "summary.json").read_text())
    page = run_page(RunFiles.read(folder))
    base, pruned = summary["base"], summary["pruned"]
    accuracy, macs, params = page.headlines
    assert accuracy.now.startswith(f"{pruned['accuracy']:.2%}\N{NO-BREAK SPACE}±")
    assert accuracy.before.startswith(f"{base['accuracy']:.2%}\N{NO-BREAK SPACE}±")
    assert macs.change == f"−{100 * (1 - pruned['macs'] / base['macs']):.1f}%"
    assert params.now == f"{pruned['params'] / 1000:.2f} k"
    steps = table_of(folder, "From dense to small: accuracy on the way")
    assert [row[0] for row in steps.rows] == ["dense", "after the cut", "after fine-tuning"]
    assert steps.rows[1][3].startswith(f"{summary['after_cut']['val_accuracy']:.2%}")
    widths = chart_of(folder, "Widths over the depth of the network").columns
    assert list(zip(*widths, strict=True)) == [tuple(w) for w in summary["widths"].values()]
    before, after = chart_of(folder, "MACs over the depth of the network").columns
    assert sum(before) == pytest.approx(base["macs"] / 1000)
    assert sum(after) == pytest.approx(pruned["macs"] / 1000)
    settings = dict(next(b for b in blocks_of(folder, Facts) if b.caption == "Settings, in full").pairs)
    assert (settings["recipe.epochs"], settings["method"], settings["budget.macs"]) == ("3", "l1", "0.5")


def test_several_cuts_are_told_one_by_one(runs):
    rows = table_of(runs / "taylor", "From dense to small: accuracy on the way").rows
    assert [row[0] for row in rows] == ["dense", "after cut 1 of 2", "after the last cut", "after fine-tuning"]
    assert float(rows[1][1][:-1]) > float(rows[2][1][:-1])


def test_curves_are_those_of_the_journal(runs):
    chart = chart_of(runs / "l1-s0", "Fine-tuning: validation accuracy")
    lines = (runs / "l1-s0/journal.jsonl").read_text().splitlines()
    told = [r["accuracy"] for line in lines if (r := json.loads(line)).get("event") == "epoch"]
    assert [y / 100 for y in chart.series[0].y] == pytest.approx(told)
    summary = json.loads((runs / "ista/summary.json").read_text())
    left = chart_of(runs / "ista", "ISTA: what is left").series[0].y
    assert left == pytest.approx([100 * p["macs"] / summary["base"]["macs"] for p in summary["ista"]["curve"]])
    search = json.loads((runs / "abc/summary.json").read_text())["search"]
    each, best = chart_of(runs / "abc", "Search: the best structure so far").series
    assert len(each.y) == search["evaluations"]
    assert max(each.y) == best.y[-1] == pytest.approx(100 * search["fitness"])
    candidates = json.loads((runs / "stagewise/summary.json").read_text())["stagewise"]["search"]["candidates"]
    whole = chart_of(runs / "stagewise", "Structures measured as a whole")
    assert sum(len(s.x) for s in whole.series) == len(candidates)


def test_how_to_load_it_works(runs, sentei, monkeypatch):
    """Python and command lines as the page gives them."""
    for name in ("base", "l1-s0"):
        python, shell = blocks_of(runs / name, Code)
        scope: dict = {}
        exec(python.text, scope)
        small = scope["small" if name == "l1-s0" else "model"]
        summary = json.loads((runs / name / "summary.json").read_text())
        assert sum(p.numel() for p in small.parameters()) == summary.get("pruned", summary)["params"]
        for line in shell.text.splitlines()[:2]:
            done = sentei(*shlex.split(line)[1:])
            assert done.code == 0, done.err
    assert load(build_model("digitsnet"), runs / "l1-s0").conv2.out_channels == small.conv2.out_channels


def test_a_run_made_from_python_tells_how_to_load_it(tmp_path, data: Data):
    from sentei import prune
    from sentei.train import Recipe

    recipe = Recipe(epochs=1, limit=64)
    prune(build_model("digitsnet"), data, method="l1", run_dir=tmp_path / "x", recipe=recipe, images=64)
    (code,) = blocks_of(tmp_path / "x", Code)
    assert "model = ...  # the dense network" in code.text
    assert "looks untrained" not in report(tmp_path / "x")
    assert "Warnings" in report(tmp_path / "x")


def test_measured_time_is_shown_where_there_is_some(copied):
    folder = copied("l1-s0")
    assert "Time a pass" not in report(folder)
    benched(folder)
    (folder / "net.onnx.export.json").write_text(json.dumps({"max_error": 3e-7, "classes": ["a", "b"]}))
    page = run_page(RunFiles.read(folder))
    assert page.headlines[-1].now == "1.50 ms"
    assert page.headlines[-1].change == "1.67× (1.60 to 1.70)"
    assert chart_of(folder, "Milliseconds over the depth of the network").columns[1] == [0.25, 0.5, 0.75, 1.0]
    assert table_of(folder, "Milliseconds a pass").rows[0][0] == "ONNX Runtime, 1 thread, batch 1, cpu"
    html = report(folder)
    assert "ONNX Runtime, 1 thread, batch 1, cpu" in html
    assert "net.onnx" in html
    assert "3e-07" in html


def test_milliseconds_of_a_budget_are_shown(copied, looked_at):
    """Foretold and measured, cut by cut; what `sentei bench` measured later goes before it."""
    folder = copied("l1-s0")
    measured = {"dense_ms": 2.0, "small_ms": 1.02, "share": 0.51, "predicted_ms": 0.9, "asked_ms": 1.0, "used": 1.02}
    first = {**measured, "small_ms": 1.25, "share": 0.625, "predicted_ms": 1.0, "used": 1.25}
    found = {"runtime": "openvino", "threads": 2, "limit_ms": 1.0, "error": 0.034, "tries": [first, measured]}
    changed(folder, latency={**found, **{k: measured[k] for k in ("dense_ms", "small_ms", "share", "predicted_ms")}})
    page = run_page(RunFiles.read(folder))
    time = page.headlines[-1]
    assert (time.now, time.before, time.change) == ("1.02 ms", "2.00 ms", "1.96×")
    assert "It is 1.96× as fast in OpenVINO, 2 threads, batch 1, cpu." in page.lead
    assert table_of(folder, "Cuts under the budget of milliseconds").rows == [
        ["1", "1.00", "1.00", "1.25", "2.00", "62.5%", "125.0%"],
        ["2", "1.00", "0.900", "1.02", "2.00", "51.0%", "102.0%"],
    ]
    html = report(folder)
    assert "where 0.900 ms were foretold" in html
    assert "calibrated on within 3.4%" in html
    assert looked_at(html)[0] == []
    changed(copied("l1-small"), latency={**found, "dense_ms": 2.0, "small_ms": 0.8, "share": 0.4, "predicted_ms": 0.8})
    assert "Test accuracy against milliseconds, OpenVINO, 2 threads, batch 1, cpu" in report(folder.parent)
    benched(folder)
    assert run_page(RunFiles.read(folder)).headlines[-1].now == "1.50 ms"


def test_a_run_of_an_earlier_version_is_shown_without_what_it_lacks(copied):
    folder = copied("l1-s0")
    summary = json.loads((folder / "summary.json").read_text())
    changed(folder, **{k: {} for k in ("layers", "seconds", "machine", "frozen", "settings")})
    (folder / "journal.jsonl").unlink()
    html = report(folder)
    assert "MACs by layer are not known" in html
    assert "Training curves" not in html
    assert f"{summary['pruned']['accuracy']:.2%}" in html


# -- folders


def test_runs_that_differ_in_their_seed_are_one_mark(runs):
    read = [RunFiles.read(runs / name) for name in METHODS]
    assert [len(group) for group in comparable(read)] == [len(METHODS)]
    points = points_of(read)
    assert sorted(len(p.runs) for p in points) == [1] * (len(METHODS) - 2) + [2]
    both = next(p for p in points if len(p.runs) == 2)
    assert {r.folder.name for r in both.runs} == {"l1-s0", "l1-s1"}
    small = next(p for p in points if p.runs[0].folder.name == "l1-small")
    assert small.line == both.line
    html = report(runs)
    assert "Means over seeds" in html
    assert "Networks that were trained, not pruned" in html
    assert all(name in html for name in METHODS)


def test_a_curve_is_one_method_at_one_total_of_trained_images(copied):
    """Totals within a batch are the same; runs that did not count have a curve of their own."""
    given = {
        "l1-s0": (0.5, 6400), "l1-s1": (0.4, 6390), "l1-small": (0.3, 6336), "taylor": (0.3, 6400), "abc": (0.2, 0)
    }  # fmt: skip
    runs = []
    for name, (budget, total) in given.items():
        settings = {"recipe": {"batch_size": 64}, "budget": {"macs": budget}}
        counts = {"total": total} if total else None
        folder = copied(name)
        changed(folder, settings=settings, method="taylor" if name == "taylor" else "l1", images_trained=counts)
        runs.append(RunFiles.read(folder))
    assert sorted(curve_names(points_of(runs))) == [
        "l1", "l1, 6.34 k images", "l1, 6.40 k images", "l1, 6.40 k images", "taylor, 6.40 k images"
    ]  # fmt: skip
    html = report(runs[0].folder.parent)
    assert "taylor, 6.40 k images</" in html
    assert "A curve is one method at one total of images" in html


def test_what_cannot_be_compared_is_apart_and_what_cannot_be_read_is_named(copied):
    copied("l1-s1")
    copied("abc")
    other = copied("l1-s0")
    description = json.loads((other / "summary.json").read_text())["data_description"]
    changed(other, data_description={**description, "content": "other"})
    damaged = copied("taylor")
    (damaged / "summary.json").write_text((damaged / "summary.json").read_text().replace("0.", "1.", 1))
    unfinished = copied("ista")
    (unfinished / "summary.json").unlink()
    html = report(other.parent)
    assert "2 different dense networks, data sets or metrics" in html
    assert "taylor: " in html
    assert "its checksum does not match" in html
    assert "Go on with:  sentei resume" in html
    assert html.count('<svg class="chart wide"') == 2


def test_time_is_compared_where_it_was_measured_alike(copied):
    for i, name in enumerate(("l1-s0", "l1-small", "abc")):
        benched(copied(name), small=1.5 + i, runtime="openvino" if name == "abc" else "onnxruntime")
    html = report(copied("taylor").parent)
    assert "Test accuracy against milliseconds, ONNX Runtime, 1 thread, batch 1, cpu, a processor" in html
    assert "milliseconds, OpenVINO" not in html


def test_what_a_comparison_found_is_shown(copied):
    gap = {"mean": -0.012, "count": 3, "low": -0.03, "high": 0.006, "p": 0.1, "p_holm": 0.2, "told_apart": False}
    result = {"budget": {"macs": 0.5}, "finished": 3, "waiting": 0, "failed": []}
    metric = {"name": "accuracy", "lower_is_better": False, "percent": True}
    found = {
        "format": "sentei compare", "version": 1, "plan": {"metric": metric, "total_images": 3840}, "runs": [],
        "results": [
            {**result, "method": "uniform", "difference": None, "sentence": None},
            {**result, "method": "l1", "waiting": 1, "difference": gap, "sentence": "l1 is not told apart."},
        ],
    }  # fmt: skip
    folder = copied("l1-s0").parent
    assert "Compared with uniform" not in report(folder)
    (folder / "compare.json").write_text(json.dumps(found))
    page = folder_page(folder, [RunFiles.read(folder / "l1-s0")], {})
    section = next(s for s in page.sections if s.title == "Compared with uniform")
    text, table, sentence = section.blocks
    assert "3,840 samples" in text.text
    assert table.rows[1] == ["l1", "macs 0.5", "3 (1 to come)", "−1.20 points", "−3.00 to +0.60", "0.200", "no"]
    assert sentence.text == "l1 is not told apart."
    (folder / "compare.json").write_text(json.dumps({**found, "version": 2}))
    with pytest.raises(CheckpointError, match="compare.json is damaged or of another version: version is 2"):
        report(folder)


def test_samples_that_were_trained_on_are_shown_where_they_were_counted(copied):
    folder = copied("l1-s0")
    changed(folder, images_trained={"finetune": 4000, "total": 4000})
    facts = next(b for b in blocks_of(folder, Facts) if b.caption == "Samples that went through training steps")
    assert facts.pairs == [("fine-tuning", "4,000"), ("total", "4,000")]
    assert "samples trained" in report(folder.parent)


# -- the command


def test_the_command_writes_the_page_into_the_run(copied, sentei):
    folder = copied("l1-s0")
    done = sentei("report", folder)
    assert done.code == 0, done.err
    assert f"Report: {folder}/report.html" in done.out.replace("\n", "")
    first = (folder / "report.html").read_bytes()
    told = json.loads(sentei("report", folder, "--json").out)
    assert told == {"report": str(folder / "report.html"), "bytes": len(first)}
    assert (folder / "report.html").read_bytes() == first
    assert sentei("report", folder.parent, "--out", "sub/all.html").code == 0
    assert Path("sub/all.html").read_text().startswith("<!doctype html>")
    again = ("prune", "digitsnet", "--data", "digits", "--method", "l1", "--untrained", "--epochs", 0)
    assert sentei(*again, "--run", folder, "--overwrite").code == 0
    assert not (folder / "report.html").exists()


def test_what_cannot_be_shown_is_refused_in_a_line(copied, sentei, tmp_path):
    folder = copied("l1-s0")
    assert "there is no folder nowhere" in sentei("report", "nowhere").err
    (tmp_path / "empty").mkdir()
    assert "neither a run directory nor a folder with finished runs" in sentei("report", "empty").err
    assert "is a folder; give a file" in sentei("report", folder, "--out", "empty").err
    (folder / "bench.json").write_bytes(sealed_json(as_file([{}])))
    assert "bench.json is damaged or of another version: entries.0.runtime" in sentei("report", folder).err
    (folder / "bench.json").write_text("{")
    assert "bench.json is damaged" in sentei("report", folder).err
    (folder / "summary.json").unlink()
    refused = sentei("report", folder)
    assert refused.code == 2
    assert refused.err.strip() == f"Error: the run in {folder} is not finished. Go on with:  sentei resume {folder}"
    assert not (folder / "report.html").exists()


def test_without_jinja2_one_line_tells_what_to_install(runs, sentei, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "jinja2", None)
    refused = sentei("report", runs / "l1-s0")
    assert refused.code == 2
    assert refused.err.strip() == "Error: a report needs jinja2, which is not installed:  pip install 'sentei[report]'"
