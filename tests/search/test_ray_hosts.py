"""A Ray cluster of two hosts with a cable between them, which is pulled."""

import json
import os
import subprocess
import sys
import tempfile
import textwrap
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from sentei.search import Colony, Search, Store, open_executor
from sentei.search.testing import small_space
from sentei.train.journal import Journal
from tests.hosts import HEAD, MISSING, WORKER, Hosts
from tests.search.fakes import Fake, Noted
from tests.search.test_executors import _wait_for

PORT = 6399
PAYLOAD = 30_000_000
EVALUATIONS = 60
PATIENCE = 600.0
"""Seconds for what takes a few on an idle machine."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(MISSING, reason="network namespaces need root and ip"),
]


class Heavy(Noted, Fake):
    """Takes some bytes to send, and notes each time that it is packed and opened, and on which host."""

    def __init__(self, folder, slow):
        super().__init__(folder, slow=slow)
        self.weights = np.random.default_rng(0).integers(0, 256, PAYLOAD, np.uint8)

    def note(self, what):
        with open(self.folder / what, "a") as file:
            file.write(os.readlink("/proc/self/ns/net") + "\n")

    def __call__(self, widths, share=1.0):
        self.note("evaluated")
        return {"fitness": super().__call__(widths, share)["fitness"]}


def search(folder, where, workers, slow=0.0):
    evaluator = Heavy(folder, slow) if where == "ray" else Fake(folder)
    strategy = Colony(small_space(budget=True), evaluations=EVALUATIONS, seed=2)
    store = Store(evaluator.settings, Journal(Path(folder) / f"{where}.jsonl"))
    with open_executor(where, evaluator, workers) as executor:
        return Search(strategy, store, executor).run()


def evaluations(path):
    """By number: within a batch, those of several workers come in any order."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else []:
        record = json.loads(line)
        kept = ("number", "phase", "cycle", "fitness", "error", "widths", "evaluator", "share")
        found.append({name: record[name] for name in kept})
    return sorted(found, key=lambda r: r["number"])


wait_for = partial(_wait_for, seconds=PATIENCE)


class RayHosts(Hosts):
    """A head on one and a worker on the other, each a `ray start --block`."""

    def __init__(self, folder):
        super().__init__()
        self.folder, self.running = folder, {}

    def __enter__(self):
        super().__enter__()
        try:
            self.start(HEAD, "--head", f"--port={PORT}", "--num-cpus=1", "--include-dashboard=false")
            wait_for(self.is_up)
            self.start_worker()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for address in list(self.running):
            self.stop(address)
        super().__exit__()

    def is_up(self):
        probe = f"import socket; socket.create_connection(({HEAD!r}, {PORT}), 1)"
        return subprocess.run(self.inside(HEAD, sys.executable, "-c", probe), capture_output=True).returncode == 0

    def start_worker(self):
        self.start(WORKER, f"--address={HEAD}:{PORT}", "--num-cpus=2")

    def start(self, address, *options):
        ray = [sys.executable, "-c", "from ray.scripts.scripts import main; main()", "start", "--block"]
        log = open(self.folder / f"{address}.log", "ab")  # noqa: SIM115
        self.running[address] = subprocess.Popen(
            self.inside(address, *ray, *options, f"--node-ip-address={address}", "--disable-usage-stats",
                        "--object-store-memory=150000000", f"--temp-dir={self.folder / 'ray'}"),
            env=environment(), stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        log.close()

    def stop(self, address):
        process = self.running.pop(address)
        self.kill(address)
        process.wait()

    def searching(self, slow):
        script = f"""
            from tests.search.test_ray_hosts import search
            search({str(self.folder)!r}, "ray", 3, {slow})
        """
        return subprocess.Popen(
            self.inside(HEAD, sys.executable, "-c", textwrap.dedent(script)),
            env={**environment(), "RAY_ADDRESS": f"{HEAD}:{PORT}"},
        )


def environment():
    path = os.pathsep.join(p for p in [*sys.path, os.getcwd()] if p)
    health = {"initial_delay_ms": 5000, "period_ms": 1000, "timeout_ms": 5000, "failure_threshold": 3}
    return {
        **os.environ, "PYTHONPATH": path, "RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        **{f"RAY_health_check_{name}": str(value) for name, value in health.items()},
    }  # fmt: skip


def lines(path):
    return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def hosts():
    pytest.importorskip("ray")
    with tempfile.TemporaryDirectory(prefix="st") as folder, RayHosts(Path(folder)) as running:
        yield running


def test_a_host_that_is_cut_off_and_comes_back_loses_nothing(hosts, tmp_path):
    search(tmp_path, "here", 1)
    expected, journal = evaluations(tmp_path / "here.jsonl"), hosts.folder / "ray.jsonl"
    before = hosts.received()
    process = hosts.searching(slow=1.5)  # the second host has time to join in
    wait_for(lambda: process.poll() is not None or len(set(lines(hosts.folder / "evaluated"))) == 2)
    wait_for(lambda: process.poll() is not None or len(lines(hosts.folder / "opened")) == 3)
    assert process.poll() is None
    assert hosts.received() - before < 1.5 * PAYLOAD  # two actors there, and one copy went through the cable
    assert len(lines(hosts.folder / "packed")) == 1

    known = len(evaluations(journal))
    hosts.cable("down")
    time.sleep(3)
    hosts.cable("up")  # so soon that nobody takes the host for dead
    wait_for(lambda: len(evaluations(journal)) > known + 5 or process.poll() is not None)
    assert process.poll() is None

    hosts.cable("down")
    wait_for(lambda: hosts.running[WORKER].poll() is not None or process.poll() is not None)  # it gave itself up
    alone = len(evaluations(journal))
    assert process.poll() is not None or alone < EVALUATIONS
    hosts.cable("up")
    hosts.stop(WORKER)
    hosts.start_worker()
    assert process.wait(PATIENCE) == 0
    assert evaluations(journal) == expected
    assert len(lines(hosts.folder / "packed")) == 1


def test_a_driver_that_is_killed_goes_on_by_its_journal(hosts, tmp_path):
    search(tmp_path, "here", 1)
    journal = hosts.folder / "ray.jsonl"
    process = hosts.searching(slow=0.3)
    wait_for(lambda: process.poll() is not None or len(evaluations(journal)) >= 11)
    process.kill()
    process.wait()
    known = evaluations(journal)
    assert 11 <= len(known) < EVALUATIONS
    assert hosts.searching(slow=0.0).wait(PATIENCE) == 0
    assert evaluations(journal) == evaluations(tmp_path / "here.jsonl")
