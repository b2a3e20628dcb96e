"""The same outcomes from this process, from worker processes and from Ray, whatever dies on the way."""

import os
import signal
import sys
import textwrap
import threading
import time

import pytest

from sentei.errors import ConfigError, SearchError
from sentei.search import Colony, Job, Search, Store, open_executor
from sentei.search.processes import Processes, Worker
from sentei.search.testing import small_space
from tests.forked import Parent, children
from tests.search.fakes import Fake

JOBS = [Job(i, (i, 1, 2)) for i in range(7)]


def outcomes(where, evaluator, workers=1, jobs=JOBS):
    with open_executor(where, evaluator, workers) as executor:
        found = sorted(executor.run(jobs), key=lambda o: o.job.number)
    return [(o.job.number, o.result and o.result["fitness"], o.error) for o in found]


def test_processes_give_what_one_process_gives(tmp_path):
    evaluator = Fake(tmp_path, fails=(5,), breaks=(8,))
    here = outcomes("here", evaluator)
    assert here[2] == (2, None, "the loss is no longer finite")
    assert here[5] == (5, None, "ZeroDivisionError: oops")
    assert [fitness for _, fitness, _ in here] == [3, 4, None, 6, 7, None, 9]
    with open_executor("process", evaluator, 2) as executor:
        found = sorted(executor.run(JOBS), key=lambda o: o.job.number)
        assert [(o.job.number, o.result and o.result["fitness"], o.error) for o in found] == here
        threads = {o.result["threads"] for o in found if o.result}  # they share the processors
        assert threads == {max(1, executor.executor.threads)}
        assert executor.executor.threads * 2 <= max(2, len(os.sched_getaffinity(0)))


def test_a_worker_that_dies_is_replaced_and_its_job_done_again_until_it_is_given_up(tmp_path):
    found = outcomes("process", Fake(tmp_path, dies=(4,), always_dies=(5,)), 1)
    assert (tmp_path / "died-4").exists()
    assert found[2] == (2, None, "its worker died 3 times, last with code -9")
    assert [fitness for _, fitness, _ in found] == [3, 4, None, 6, 7, 8, 9]


def test_an_evaluator_that_cannot_be_opened_is_said_at_once(tmp_path):
    class Unpicklable(Fake):
        def __reduce__(self):
            return (_explode, ())

    with pytest.raises(SearchError, match="ended with code 1 before it could start"):
        outcomes("process", Unpicklable(tmp_path), 1)
    evaluator = Fake(tmp_path)
    evaluator.lock = threading.Lock()
    with pytest.raises(SearchError, match="cannot be sent to another process: cannot pickle"):
        outcomes("process", evaluator, 2)


@pytest.mark.slow
@pytest.mark.usefixtures("really_started")
def test_a_worker_that_died_while_it_was_idle_is_replaced(tmp_path, monkeypatch):
    (tmp_path / "calendar.py").write_text("raise ImportError('shadowed')")
    monkeypatch.chdir(tmp_path)  # what lies here must not shadow the worker's modules
    with open_executor("process", Fake(tmp_path), 1) as executor:
        assert next(executor.run(JOBS[:1])).result["fitness"] == 3
        executor.executor.crew[0].process.kill()
        executor.executor.crew[0].process.wait()
        assert [o.result["fitness"] for o in executor.run(JOBS[1:3])] == [4, 5]


def _explode():
    raise RuntimeError("cannot be opened")


def test_no_worker_outlives_the_executor(tmp_path):
    with open_executor("process", Fake(tmp_path, slow=30), 2) as executor:
        run = executor.run([Job(9, (1, 1))])
        executor.executor.crew.append(Worker(1))
        worker = executor.executor.crew[0].process
        del run
    assert worker.poll() is not None


def test_no_worker_outlives_a_parent_that_was_killed(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(
        textwrap.dedent(f"""
        from sentei.search import Job, open_executor
        from tests.search.fakes import Fake
        executor = open_executor("process", Fake({str(tmp_path)!r}, slow=60), 1)
        for outcome in executor.run([Job(0, (1, 1))]):
            pass
    """)
    )
    path = os.pathsep.join(p for p in [*sys.path, os.getcwd()] if p)
    parent = Parent([sys.executable, script], env={**os.environ, "PYTHONPATH": path})
    worker = _wait_for(lambda: children(parent.pid))[0]
    time.sleep(0.2)
    parent.kill()
    parent.wait()
    assert _wait_for(lambda: not _alive(worker))


def _alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] != "Z"


def _wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError("waited in vain")


@pytest.mark.parametrize(
    ("where", "workers", "message"),
    [
        ("here", 2, "one process has one worker"),
        ("process", 0, "workers is 0"),
        ("moon", 1, "expected 'here', 'process' or 'ray'"),
    ],
)
def test_places_that_make_no_sense_are_refused(where, workers, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        open_executor(where, Fake(tmp_path), workers)


def search(where, workers, evaluator):
    strategy = Colony(small_space(budget=True), evaluations=40, seed=2)
    with open_executor(where, evaluator, workers) as executor:
        result = Search(strategy, store := Store(evaluator.settings), executor).run()
    return result.levels, result.fitness, sorted(store.found)


def test_a_search_has_one_result_wherever_it_runs(tmp_path):
    here = search("here", 1, Fake(tmp_path))
    assert search("process", 2, Fake(tmp_path, dies=(here[1],))) == here


@pytest.fixture
def ray(monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    yield ray
    ray.shutdown()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::FutureWarning")
def test_ray_gives_the_same(ray, tmp_path):
    found = outcomes("ray", Fake(tmp_path, fails=(5,)), 1)
    assert [fitness for _, fitness, _ in found] == [3, 4, None, 6, 7, 8, 9]
    assert found[2][2] == "the loss is no longer finite"
    assert not ray.is_initialized()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::FutureWarning")
def test_ray_gives_the_same_and_survives_the_death_of_an_actor(ray, tmp_path):
    evaluator = Fake(tmp_path, dies=(4,), always_dies=(7,), fails=(5,))
    found = outcomes("ray", evaluator, 2)
    assert [fitness for _, fitness, _ in found] == [3, 4, None, 6, None, 8, 9]
    assert found[2][2] == "the loss is no longer finite"
    assert found[4][2] == "its Ray actor died 3 times"
    assert (tmp_path / "died-4").exists()
    here = search("here", 1, Fake(tmp_path))
    assert search("ray", 2, Fake(tmp_path)) == here
    assert not ray.is_initialized()


@pytest.mark.slow
def test_a_killed_raylet_ends_in_a_clear_error_and_keeps_what_was_measured(ray, tmp_path):
    with open_executor("ray", Fake(tmp_path, slow=0.5), 1) as executor:
        run = executor.run([Job(i, (i, 1, 2)) for i in range(200)])
        first = next(run)
        driver = executor.executor.driver.process
        raylets = [pid for pid in children(driver.pid) if _name(pid) == "raylet"]
        assert raylets
        for pid in raylets:
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(SearchError, match="the Ray cluster was lost.*sentei resume"):
            list(run)
    assert first.result["fitness"] == 3
    assert driver.poll() is not None


def _name(pid):
    with open(f"/proc/{pid}/comm") as file:
        return file.read().strip()


def test_ctrl_c_passes_through(tmp_path):
    with open_executor("here", Fake(tmp_path, interrupts=(4,))) as executor, pytest.raises(KeyboardInterrupt):
        list(executor.run(JOBS))


def test_a_worker_ignores_ctrl_c(tmp_path):
    with open_executor("process", Fake(tmp_path, slow=0.3), 1) as executor:
        run = executor.run(JOBS[:2])
        first = next(run)
        executor.executor.crew[0].process.send_signal(signal.SIGINT)
        assert [first.job.number, next(run).job.number] == [0, 1]
        assert not list(tmp_path.glob("died*"))


def test_a_worker_that_is_killed_before_it_could_start_is_replaced(tmp_path):
    workers = Processes(Fake(tmp_path), 1)
    workers.crew.append(Worker(1))
    workers.crew[0].process.kill()
    assert [o.result["fitness"] for o in workers.run(JOBS[:2])] == [3, 4]
    workers.close()
