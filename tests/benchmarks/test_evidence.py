"""The evidence ledger: a row is there once and whole, whatever is killed, and tables come from the ledger alone."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))  # as for a script that is started there

from ledger.book import Ledger, claimed, is_claimed  # noqa: E402
from ledger.plan import CONTENDERS, PEERS, SIX, THIRD, Row, plan  # noqa: E402
from ledger.proxies import tau_ahead  # noqa: E402
from ledger.tables import tables  # noqa: E402
from sentei.answers import packed  # noqa: E402
from sentei.methods import METHODS  # noqa: E402
from tests.forked import Popen  # noqa: E402

ROW = Row("half", "resnet20", "uniform", {"macs": 0.5}, 4)


def result(test=0.9, **other):
    return {
        "dense": {"test": 0.9145, "val": 0.9154, "macs": 40_551_040, "params": 269_722}, "cut": 0.5, "val": test,
        "test": test, "macs": 20_275_520, "params": 134_861, "refused": None, "evaluations": None,
        "images": {"search": 0, "sparse": 90_000, "finetune": 90_000, "total": 180_000},
        "seconds": {"cut": 1.0, "search": 60.0, "finetune": 100.0, "total": 161.0}, "device": "cpu",
        "machine": {"cpu": "a processor", "threads": 1}, "versions": {"torch": "2", "torch-pruning": "1.6.1"},
        "when": "2026-11-29", **other,
    }  # fmt: skip


def test_every_row_of_the_plan_is_there_once_and_means_something():
    rows = plan()
    assert len({row.name for row in rows}) == len(rows) == len({json.dumps(row.to_json()) for row in rows})
    one = {row.contender for row in rows if row.table == "half"}
    assert one == {label for label in CONTENDERS if label.split()[-1] not in ("20", "80", "320")}
    assert one >= {*SIX, *PEERS, "l1", "abc --paper"}
    repeated = {row.contender for row in rows if row.limits == {"macs": 0.3} and row.seed == 2}
    assert repeated == {*THIRD}
    assert all(row.to_json() == json.loads(json.dumps(row.to_json())) for row in rows)
    known = set(METHODS) - {"l2"}
    assert {c.method for c in CONTENDERS.values()} == known | {"torch-pruning", "modelopt"}


def test_a_paired_bootstrap_tells_a_better_proxy_from_one_that_is_as_good():
    rng = np.random.default_rng(0)
    real = rng.random(40)
    good, as_good, bad = (real + share * rng.standard_normal(40) for share in (0.1, 0.1, 1.0))
    ahead, low, _ = tau_ahead(good, bad, real)
    assert ahead > low > 0
    _, low, high = tau_ahead(good, as_good, real)
    assert low < 0 < high


def test_a_row_is_appended_once(tmp_path):
    ledger = Ledger(tmp_path)
    for test in (0.9, 0.8):
        ledger.append(ROW, result(test))
    ledger.append(replace(ROW, seed=1), result(0.7))
    assert [line["test"] for line in ledger.lines()] == [0.9, 0.7]
    assert ledger.has(ROW)
    assert not ledger.has(replace(ROW, lr=0.1))


def test_what_a_kill_leaves_of_a_line_is_passed_over_and_written_again(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.append(ROW, result())
    file = tmp_path / "resnet20.jsonl"
    file.write_bytes(whole := file.read_bytes() + file.read_bytes()[:100])
    assert len(ledger.lines()) == 1
    ledger.append(replace(ROW, seed=1), result())
    assert [line["row"]["seed"] for line in ledger.lines()] == [0, 1]
    assert file.read_bytes().startswith(whole[:-100])


def test_a_claim_ends_with_its_process(tmp_path):
    script = f"""
        import sys, time
        from pathlib import Path
        sys.path.insert(0, {str(BENCHMARKS)!r})
        from ledger.book import claimed
        with claimed(Path({str(tmp_path)!r})) as mine:
            print(mine, flush=True)
            time.sleep(60)
    """
    other = Popen([sys.executable, "-c", dedent(script)], stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "True\n"
    assert is_claimed(tmp_path)
    with claimed(tmp_path) as mine:
        assert not mine
    other.kill()
    other.communicate()
    assert not is_claimed(tmp_path)


def test_tables_state_seeds_spread_images_and_ties():
    lines = [line(ROW, 0.88), line(replace(ROW, seed=1), 0.886), line(replace(ROW, contender="abc"), 0.9)]
    lines += [line(replace(ROW, contender="taylor"), 0.881), line(replace(ROW, contender="tp bn global"), 0.7)]
    lines.append(line(replace(ROW, contender="modelopt fastnas"), refused="ValueError: no"))
    found = tables(lines)
    assert "50% of the MACs, 4 epochs in all (180,000 training images), the dense network as teacher" in found
    assert "| sparse 90,000 |  | 161 |" in found
    assert "| sparse 90,000 | 2.2 | 161 |" in found, "200 structures of abc, 3,000 images each, at half the MACs"
    assert "| abc | 1 | 50.00% | 90.00% | 90.00% | +2.00 ± 0.44 (1 seed) | +20.00 ± 0.55 |" in found
    assert "| uniform | 2 | 50.00% | 88.30% ± 0.42 | 88.30% ± 0.42 |  | +18.00 ± 0.56 (1 seed) |" in found
    assert "| taylor | 1 | 50.00% | 88.10% | 88.10% | +0.10 ± 0.46 (tie, 1 seed) |" in found
    assert "Seeds 0, 1; a processor (5), 1 threads, torch 2, Torch-Pruning 1.6.1, 2026-11-29 to 2026-11-29." in found
    assert "- modelopt fastnas on resnet20: ValueError: no" in found
    assert found.index("| abc |") < found.index("| uniform |") < found.index("| tp bn global |")
    assert tables([]) == "The ledger is empty."


def test_where_answers_are_known_the_tables_compare_image_by_image():
    half = np.arange(10_000) % 2 == 0
    more = half | (np.arange(10_000) < 200)
    told = [line(ROW, 0.5, answers=packed(half)), line(replace(ROW, contender="abc"), 0.51, answers=packed(more))]
    assert "| abc | 1 | 50.00% | 51.00% | 51.00% | +1.00 ± 0.10 |" in tables(told)
    assert "+1.00 ± 0.71 (tie)" in tables([told[0], line(replace(ROW, contender="abc"), 0.51)])


def test_a_gap_of_few_seeds_is_a_tie_within_the_wider_interval_of_students_t():
    apart = [0.9, 0.91, 0.9], [0.895, 0.89, 0.889]
    told = [
        line(replace(ROW, contender=label, seed=seed), test, answers=packed(np.arange(10_000) < 10_000 * test))
        for label, tests in zip(("abc", "uniform"), apart, strict=True)
        for seed, test in enumerate(tests)
    ]
    row = next(row for row in tables(told).splitlines() if row.startswith("| abc |"))
    gap = row.split(" | ")[5]
    mean, error = (float(part) for part in gap.partition(" (")[0].split(" ± "))
    assert mean > 2 * error
    assert gap.endswith("(tie)")


@pytest.mark.parametrize("table", ["half", "nowhere"])
def test_a_row_that_no_table_would_tell_from_another_is_refused(table):
    with pytest.raises(ValueError, match="settings"):
        Row(table, "resnet20", "abc", {"macs": 0.5}, 4, options={"evaluations": 20})


def test_what_the_plan_does_not_have_is_said_with_the_nearest():
    asked = [sys.executable, str(BENCHMARKS / "evidence.py"), "plan", "--only", "4x-unifrom-distilled-s0"]
    told = subprocess.run(asked, capture_output=True, text=True)
    assert told.returncode == 1
    assert "resnet20-macs0.5-4x-uniform-distilled-s0" in told.stderr


def test_tables_of_a_trial_say_so_and_show_what_was_asked_for(tmp_path):
    ledger = Ledger(tmp_path / "trial/ledger")
    for row in (ROW, replace(ROW, table="third", limits={"macs": 0.3})):
        for label in ("uniform", "l1"):
            ledger.append(replace(row, contender=label), result())
    asked = [sys.executable, str(BENCHMARKS / "evidence.py"), "tables", "--trial", "--work", str(tmp_path)]
    told = subprocess.run([*asked, "--only", "macs0.3"], capture_output=True, text=True).stdout
    assert "these figures mean nothing" in told
    assert "resnet20, 30% of the MACs" in told
    assert "resnet20, 50% of the MACs" not in told


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        (["run", "--data-root", "nowhere"], "--data-root is nowhere; expected the folder that holds"),
        (["row", "--data-root", ".", "--only", "4x-uniform"], "row expected the whole name"),
    ],
)
def test_what_cannot_be_begun_is_refused(asked, text, tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    command = [sys.executable, str(BENCHMARKS / "evidence.py"), *asked]
    told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert told.returncode == 2
    assert text in told.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["cifar-10-batches-py"]


def test_an_experiment_that_fails_is_told_and_so_is_one_that_waits(tmp_path):
    for only, code, expected in (("8x-uniform-hinted10-s0", 1, "failed, see"), ("resnet56", 0, "wait for --resnet56")):
        asked = [sys.executable, str(BENCHMARKS / "evidence.py"), "run", "--trial", "--only", only]
        (tmp_path / "cifar-10-batches-py").mkdir(exist_ok=True)  # and nothing in it
        asked += ["--data-root", str(tmp_path), "--work", str(tmp_path / "work")]
        told = subprocess.run(asked, capture_output=True, text=True)
        assert (told.returncode, expected in told.stdout) == (code, True), told.stdout


def test_the_default_is_held_against_other_tools_with_and_without_a_teacher():
    default, peer = replace(ROW, contender="abc", hints=10.0), replace(ROW, contender="tp bn global")
    told = [line(default, 0.9), line(replace(default, seed=1), 0.91), line(peer, 0.88)]
    told += [line(replace(peer, distill=False), 0.87), line(replace(peer, distill=False, seed=1), 0.87)]
    passed = [line(replace(default, hints=0.0), 0.5), line(replace(peer, lr=0.1), 0.95)]
    passed.append(line(replace(peer, network="resnet56")))
    table = tables([*told, *passed]).partition("as it is by default")[2]
    rows = [row for row in table.splitlines() if row.startswith("| resnet20")]
    assert f"a processor ({len(told)})" in table.partition("Seeds")[2].splitlines()[0]
    assert [row.split(" | ")[3:] for row in rows[:3]] == [
        ["abc", "outputs, features x 10", "2", "90.50% ± 0.71", "90.50% ± 0.71", " |"],
        ["tp bn global", "outputs", "1", "88.00%", "88.00%", "+2.00 ± 0.44 (1 seed) |"],
        ["tp bn global", "nothing", "2", "87.00% ± 0.00", "87.00% ± 0.00", "+3.50 ± 0.67 |"],
    ]


def test_one_contender_fine_tuned_in_several_ways_is_a_table_with_the_best_on_validation_first():
    tried = [line(ROW, 0.88), line(replace(ROW, lr=0.1), 0.87), line(replace(ROW, distill=False), 0.89)]
    tried += [line(replace(ROW, recipe={"batch_size": 64}), 0.86), line(replace(ROW, seed=1), 0.84)]
    found = tables([*tried, line(replace(ROW, contender="abc"), 0.9)]).partition("fine-tuned in several ways")[2]
    rows = [row for row in found.splitlines() if row.startswith("| resnet20")]
    assert [row.split(" | ")[4:8] for row in rows] == [
        ["nothing", "learning rate 0.02", "1", "89.00%"],
        ["outputs", "learning rate 0.1", "1", "87.00%"],
        ["outputs", "learning rate 0.02", "2", "86.00% ± 2.83"],
        ["outputs", "learning rate 0.02, batch_size 64", "1", "86.00%"],
    ]
    assert [row.split(" | ")[-1] for row in rows] == [
        "+1.00 ± 0.45 (1 seed) |", "-1.00 ± 0.47 (1 seed) |", " |", "-2.00 ± 0.48 (1 seed) |",
    ]  # fmt: skip
    assert "abc" not in found


def test_other_settings_of_a_method_stand_beside_its_own():
    own = replace(ROW, contender="ista")
    other = replace(own, table="settings", options={"growth": 3.0})
    told = [line(own, 0.89), line(replace(own, seed=1), 0.8), line(other, 0.9)]
    found = tables([*told, line(replace(other, seed=2), 0.7)]).partition("beside those of the tables above")[2]
    assert [row for row in found.splitlines() if row.startswith("| ista")] == [
        "| ista | growth 3.0 | 0 | 50.00% | 90.00% | 90.00% | 89.00% | 89.00% | +1.00 ± 0.43 |",
        "| ista | sparse_epochs 8, growth 3.0 | 2 | 50.00% | 70.00% | 70.00% |  | | not made yet |",
    ]


def test_supernets_of_other_stages_and_lengths_are_a_line_each():
    proxies = {"stagewise": {"tau": 0.6, "low": 0.5, "high": 0.7}, "train": {"tau": 0.8, "low": 0.7, "high": 0.9}}
    structures = [{"band": True, "real": [0.8 + i / 100], "stagewise": i, "train": i} for i in range(5)]
    told = [
        line(next(row for row in plan() if row.contender == label), proxies=proxies, structures=structures,
             agreement=None)
        for label in ("fidelity 9 stages, 12 epochs", "fidelity", "fidelity 2 stages")
    ]  # fmt: skip
    found = tables(told)
    assert found.count("**Proxies beside 5 structures") == 1
    rows = [row[:40] for row in found.partition("other supernets")[2].splitlines() if row.startswith("| ")][1:]
    assert rows[1:] == [
        "| 2 | 3 | +0.60 (+0.50 .. +0.70) |  |  |",
        "| 3 | 3 | +0.60 (+0.50 .. +0.70) |  |  |",
        "| 9 | 12 | +0.60 (+0.50 .. +0.70) |  |  ",
    ]


def line(row, test=0.9, **other):
    return {"name": row.name, "table": row.table, "row": row.to_json(), **result(test), **other}


def test_the_tables_of_the_documentation_are_those_of_the_ledger():
    page = (BENCHMARKS.parent / "docs/benchmarks.md").read_text()
    assert tables(Ledger().lines()) in page


@pytest.mark.slow
def test_experiments_end_with_what_began_them(tmp_path):
    root = os.environ.get("CIFAR10")
    if not root:
        pytest.skip("set CIFAR10 to the folder that holds cifar-10-batches-py")
    only = "resnet20-macs0.5-8x-uniform-hinted10-s0"
    command = [sys.executable, str(BENCHMARKS / "evidence.py"), "run", "--trial", "--data-root", root]
    begun = subprocess.Popen(
        [*command, "--work", str(tmp_path), "--only", only], env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    folder = tmp_path / "trial" / only
    while not folder.is_dir() or not is_claimed(folder):
        time.sleep(0.1)
    begun.terminate()
    assert begun.wait(60) == 143
    assert not is_claimed(folder)
    assert Ledger(tmp_path / "trial/ledger").lines() == []


@pytest.mark.slow
def test_experiments_survive_kills_and_two_instances_share_them(tmp_path):
    """In a trial: three experiments, two instances, one of them and its experiment killed again and again."""
    root = os.environ.get("CIFAR10")
    if not root:
        pytest.skip("set CIFAR10 to the folder that holds cifar-10-batches-py")
    command = [
        sys.executable, str(BENCHMARKS / "evidence.py"), "run", "--trial", "--data-root", root, "--work",
        str(tmp_path), "--only", "macs0.5-4x-uniform-distilled", "--minutes", "30",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    steady = subprocess.Popen(command, env=environment)
    for wait in (9, 14, 19, 24):
        shaky = subprocess.Popen(command, env=environment, start_new_session=True)
        time.sleep(wait)
        os.killpg(shaky.pid, signal.SIGKILL)
        shaky.wait()
    last = subprocess.Popen(command, env=environment)
    assert (steady.wait(), last.wait()) == (0, 0)
    names = [line["name"] for line in Ledger(tmp_path / "trial/ledger").lines()]
    assert len(names) == len(set(names)) == sum("macs0.5-4x-uniform-distilled" in row.name for row in plan())
