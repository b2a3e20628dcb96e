"""`sentei launch` on two hosts whose names lead nowhere: they meet by addresses, share a training, lose each other."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sentei.cli.meeting import Meeting
from sentei.errors import ConfigError
from sentei.runfiles import has_progress, is_finished, read_summary
from sentei.train.journal import Journal
from tests.cli.test_launch import ENV, TRAIN, ended, started
from tests.hosts import HEAD, MISSING, WORKER, Hosts
from tests.search.test_executors import _wait_for

NEEDS_HOSTS = pytest.mark.skipif(MISSING, reason="network namespaces need root and ip")
PLACE = f"{HEAD}:29500"


def test_a_place_on_this_machine_alone_is_left_to_torchrun():
    place = Meeting.at("localhost:29500")
    assert (place.address, place.is_outside, place.interface()) == ("127.0.0.1", False, None)
    assert place.settings(2) == {"rdzv_configs": {"join_timeout": 120, "read_timeout": 120, "last_call_timeout": 30}}


@pytest.mark.parametrize("given", ["node0", "node0:", ":29500", "127.0.0.1:port", "127.0.0.1:0", "127.0.0.1:70000"])
def test_no_place(given):
    with pytest.raises(ConfigError, match="expected HOST:PORT, for instance node0:29500"):
        Meeting.at(given)


def test_an_unknown_host():
    with pytest.raises(ConfigError, match="no address is known here for nowhere.invalid"):
        Meeting.at("nowhere.invalid:29500")


def test_an_address_of_another_machine():
    place = Meeting.at("192.0.2.1:29500")  # for documentation only (RFC 5737)
    assert (place.is_outside, place.is_here) == (True, False)
    assert place.settings(2)["rdzv_configs"]["is_host"] is False


# -- two hosts


def both(hosts, tmp_path, *words):
    """The same line on both, each in a folder of its own."""
    processes = []
    for address in (HEAD, WORKER):
        (tmp_path / address).mkdir(exist_ok=True)
        command = [sys.executable, "-m", "sentei.cli", "launch", "--nnodes", "2", "--rdzv-endpoint", PLACE, *words]
        environment = {name: value for name, value in os.environ.items() if name != "GLOO_SOCKET_IFNAME"}
        processes.append(subprocess.Popen(
            hosts.inside(address, *command), cwd=tmp_path / address, env={**environment, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        ))  # fmt: skip
    return processes


@pytest.mark.slow
@NEEDS_HOSTS
def test_two_hosts_train_prune_and_keep_the_run_on_one(tmp_path):
    with Hosts() as hosts:
        first, second = map(ended, both(hosts, tmp_path, *TRAIN, "--epochs", "4", "--run", "runs/base"))
        assert (first[0], second[0]) == (0, 0), first[2] + second[2]
        assert first[1].count("train 4/4") + second[1].count("train 4/4") == 1
        owner, other = (HEAD, WORKER) if is_finished(tmp_path / HEAD / "runs/base") else (WORKER, HEAD)
        assert not (tmp_path / other / "runs").exists()
        (tmp_path / other / "runs").symlink_to(tmp_path / owner / "runs")  # what is named must be readable on both
        prune = ("prune", "runs/base", "--method", "l1", "--macs", "0.5", "--epochs", "2", "--run", "runs/half")
        done = list(map(ended, both(hosts, tmp_path, *prune)))
        assert [code for code, *_ in done] == [0, 0], done
    summary = read_summary(tmp_path / owner / "runs/half")
    assert summary["check"]["max_error"] < 1e-4
    assert summary["images_trained"]["finetune"] == 2 * (1257 // 128) * 128


@pytest.mark.slow
@NEEDS_HOSTS
def test_hosts_that_lose_each_other_end_in_bounded_time_and_the_run_goes_on(tmp_path):
    with Hosts() as hosts:
        words = ("--timeout", "0.2", *TRAIN, "--epochs", "400", "--run", "runs/a")
        processes = both(hosts, tmp_path, *words)
        runs = [tmp_path / address / "runs/a" for address in (HEAD, WORKER)]
        while not any(map(has_progress, runs)):
            assert all(process.poll() is None for process in processes)
            time.sleep(0.1)
        time.sleep(1)
        hosts.cable("down")
        done = [ended(process, 150) for process in processes]
    assert all(code for code, *_ in done)
    run = next(filter(has_progress, runs))
    assert not is_finished(run)
    told = "".join(err for *_, err in done)
    assert "has lost the others" in told
    assert f"--nnodes 2 --rdzv-endpoint {PLACE} --nproc-per-node 1 resume runs/a" in told
    process = started(run.parents[1], "resume", "runs/a")  # alone
    code, _, err = ended(process, 600)
    assert (code, err) == (0, "")
    assert read_summary(run)["images_trained"]["train"] >= 400 * 1200


@pytest.mark.slow
@NEEDS_HOSTS
@pytest.mark.parametrize("host", [HEAD, WORKER])  # at the place that they agreed on, and on the way there
def test_a_host_whom_nobody_meets_says_so(host, tmp_path):
    begun = time.monotonic()
    with Hosts() as hosts:
        words = ("--nnodes", "2", "--rdzv-endpoint", PLACE, "--timeout", "0.5", *TRAIN, "--run", "runs/a")
        line = hosts.inside(host, Path(sys.executable).with_name("sentei"), "launch", *words)
        alone = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert alone.returncode == 2
    assert time.monotonic() - begun < 120
    waiting, error = alone.stderr.strip().splitlines()
    assert waiting == f"Waiting at {PLACE} for 2 machines, 0.5 minutes at most ..."
    assert error.startswith(f"Error: the machines have not met at {PLACE} within 0.5 minutes (--timeout; ")


@pytest.mark.slow
@NEEDS_HOSTS
def test_a_host_may_come_later_and_go(tmp_path):
    run = tmp_path / "runs/a"  # on a disk that both see
    place = ("--nnodes", "1:2", "--max-restarts", "3", "--timeout", "0.5", "--rdzv-endpoint", PLACE)
    words = (*place, *TRAIN, "--epochs", "3000", "--run", str(run))
    with Hosts() as hosts, open(tmp_path / "first.log", "w") as log:
        command = ("-m", "sentei.cli", "launch", *words)
        first = subprocess.Popen(hosts.inside(HEAD, sys.executable, *command), env=ENV, stdout=log, stderr=log)
        told = (tmp_path / "first.log").read_text

        def until(seen):
            assert _wait_for(lambda: seen() or first.poll() is not None, seconds=120)
            assert first.poll() is None, told()

        until(lambda: has_progress(run))
        second = subprocess.Popen(hosts.inside(WORKER, sys.executable, *command), env=ENV, stdout=subprocess.DEVNULL)
        until(lambda: "shared by 2 processes" in told())
        hosts.kill(WORKER)
        second.wait()
        until(lambda: "as one has died. Going on with the half-finished run" in told())
        before = len(Journal(run / "journal.jsonl").records())
        until(lambda: len(Journal(run / "journal.jsonl").records()) > before + 5)
        hosts.kill(HEAD)
        first.wait()
    assert not is_finished(run)
