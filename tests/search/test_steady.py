"""The search without batches: its journal keeps the order of answers, and a resume hears them again."""

import json
import os
import random
import signal
import time
from contextlib import suppress

import pytest

from sentei.errors import ConfigError, SearchError
from sentei.search import Colony, Evolution, Executor, RandomSearch, SteadySearch, Store, open_executor
from sentei.search.jobs import attempt
from sentei.search.testing import small_space
from sentei.train.journal import Journal
from tests.search.fakes import Fake
from tests.search.test_engine import plain

STRATEGIES = [RandomSearch, Evolution, Colony]


class Shuffled(Executor):
    """Answers in an order that a seed decides, as workers of different speed would."""

    workers = 4

    def __init__(self, evaluator, seed=0, dies_after=None):
        self.evaluator, self.rng, self.left = evaluator, random.Random(seed), dies_after
        self.waiting = []

    def submit(self, job):
        self.waiting.append(job)

    def take(self):
        if self.left == 0:
            raise KeyboardInterrupt
        self.left = None if self.left is None else self.left - 1
        return attempt(self.evaluator, self.waiting.pop(self.rng.randrange(len(self.waiting))))

    def close(self):
        pass


def run(executor, journal=None, kind=Colony, evaluations=60, pending=5, watch=None):
    strategy = kind(small_space(budget=True), evaluations=evaluations, seed=2)
    store = Store(Fake.settings, journal)
    return SteadySearch(strategy, store, executor, watch, pending=pending).run()


@pytest.mark.parametrize("kind", STRATEGIES)
@pytest.mark.parametrize("stop", [0, 1, 17, 44])
def test_a_resumed_search_hears_the_same_answers_and_goes_on(tmp_path, kind, stop):
    fake = Fake(tmp_path)
    whole = run(Shuffled(fake, seed=1), Journal(tmp_path / "whole"), kind)
    lines = (tmp_path / "whole").read_bytes().splitlines(keepends=True)
    assert [r["answer"] for r in plain(tmp_path / "whole")] == list(range(60))
    assert sorted(r["number"] for r in plain(tmp_path / "whole")) == list(range(60))
    (tmp_path / "part").write_bytes(b"".join(lines[:stop]) + lines[stop][:20])  # killed while it wrote

    class AsBefore(Shuffled):  # the rest of the answers come in the order in which they came
        def take(self):
            wanted = plain(tmp_path / "whole")[len(plain(tmp_path / "part"))]["number"]
            job = next(j for j in self.waiting if j.number == wanted)
            self.waiting.remove(job)
            return attempt(self.evaluator, job)

    again = run(AsBefore(fake), Journal(tmp_path / "part"), kind)
    assert plain(tmp_path / "part") == plain(tmp_path / "whole")
    assert (again.levels, again.fitness, again.report["curve"]) == (whole.levels, whole.fitness, whole.report["curve"])


def test_another_order_of_answers_is_another_search(tmp_path):
    for seed in (1, 2):
        run(Shuffled(Fake(tmp_path), seed), Journal(tmp_path / str(seed)))
    assert plain(tmp_path / "1")[:5] != plain(tmp_path / "2")[:5]


@pytest.mark.parametrize("kind", STRATEGIES)
def test_interrupted_at_random_it_never_forgets_an_answer_and_ends_with_all_evaluations(tmp_path, kind):
    chance, journal, seen = random.Random(0), tmp_path / "j", []
    for attempts in range(40):
        executor = Shuffled(Fake(tmp_path), attempts, dies_after=chance.randrange(6))
        try:
            result = run(executor, Journal(journal), kind, pending=chance.randrange(1, 9))  # another number each time
        except KeyboardInterrupt:
            assert plain(journal)[: len(seen)] == seen
            seen = plain(journal)
        else:
            break
    records = plain(journal)
    assert result.report["evaluations"] == len(records) == 60
    assert len({tuple(r["widths"]) for r in records}) == 60
    assert result.fitness == max(r["fitness"] for r in records)
    dead = Fake(tmp_path, breaks=range(1000))
    assert run(Shuffled(dead), Journal(journal), kind).levels == result.levels  # all is replayed


def test_a_line_that_was_altered_ends_the_replay_and_what_follows_is_looked_up(tmp_path):
    run(Shuffled(Fake(tmp_path), 1), Journal(tmp_path / "j"))
    lines = (tmp_path / "j").read_bytes().splitlines(keepends=True)
    lines[20] = lines[20].replace(b'"answer": 20', b'"answer": 99')
    (tmp_path / "j").write_bytes(b"".join(lines))
    counted = Counted(tmp_path)
    first = run(Shuffled(counted, 5), Journal(tmp_path / "j"))
    assert len(counted.asked) < 40  # what was out and had been answered further down is not evaluated again
    assert first.report["evaluations"] == 60
    again = run(Shuffled(Fake(tmp_path, breaks=range(1000))), Journal(tmp_path / "j"))
    assert (again.levels, again.report["curve"]) == (first.levels, first.report["curve"])


class Counted(Fake):
    def __init__(self, folder):
        super().__init__(folder)
        self.asked = []

    def __call__(self, widths, share=1.0):
        self.asked.append(tuple(widths.tolist()))
        return super().__call__(widths, share)


def test_a_journal_of_another_search_is_refused(tmp_path):
    run(Shuffled(Fake(tmp_path), 1), Journal(tmp_path / "j"), RandomSearch)
    strategy = RandomSearch(small_space(budget=True), evaluations=60, seed=3)
    with pytest.raises(SearchError, match=r"answer 0 is for proposal \d .* that of another search"):
        SteadySearch(strategy, Store(Fake.settings, Journal(tmp_path / "j")), Shuffled(Fake(tmp_path)), pending=5).run()


def test_failures_keep_their_place_but_a_search_in_which_all_failed_begins_anew(tmp_path):
    best = run(Shuffled(Fake(tmp_path), 1), Journal(tmp_path / "whole")).fitness
    once = run(Shuffled(Fake(tmp_path, breaks=(int(best),)), 1), Journal(tmp_path / "j"))
    assert once.fitness < best
    assert run(Shuffled(Fake(tmp_path), 1), Journal(tmp_path / "j")).fitness == once.fitness
    with pytest.raises(SearchError, match="none of the first 16 structures could be evaluated; .*oops"):
        run(Shuffled(Fake(tmp_path, breaks=range(1000)), 1), Journal(tmp_path / "failed"))
    assert run(Shuffled(Fake(tmp_path), 1), Journal(tmp_path / "failed")).fitness == best


def test_in_one_process_answers_come_in_turn_so_that_it_is_the_same_again(tmp_path):
    for name in ("a", "b"):
        with open_executor("here", Fake(tmp_path)) as executor:
            run(executor, Journal(tmp_path / name))
    assert plain(tmp_path / "a") == plain(tmp_path / "b")
    assert [r["number"] for r in plain(tmp_path / "a")] == list(range(60))


def test_a_watch_hears_each_answer_once_and_a_line_every_so_often(tmp_path):
    class Heard:
        cached, numbers, lines = 0, [], 0

        def began(self, batch, cached):
            self.cached += cached

        def evaluated(self, record):
            self.numbers.append(record["number"])

        def told(self, batch, best):
            self.lines += 1

    run(Shuffled(Fake(tmp_path), 1), Journal(tmp_path / "j"), evaluations=20)
    heard = Heard()
    run(Shuffled(Fake(tmp_path), 1), Journal(tmp_path / "j"), watch=heard)
    assert heard.cached == 20
    assert len(heard.numbers) == 40
    assert heard.lines == 3


def test_numbers_that_make_no_sense_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="pending is 0"):
        run(Shuffled(Fake(tmp_path)), pending=0)
    strategy = Colony(small_space(budget=True), evaluations=8)
    with pytest.raises(ConfigError, match="halving needs batches"):
        SteadySearch(strategy, Store({}), Shuffled(Fake(tmp_path)), rounds=2, pending=3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", STRATEGIES)
def test_killed_at_random_moments_the_journal_always_replays(tmp_path, kind):
    chance, seen, kills, ended = random.Random(0), [], 0, False
    (tmp_path / "j").touch()
    small_space(budget=True)  # traced here, not by each child
    for seed in range(40):
        child = os.fork()
        if not child:
            with suppress(BaseException):
                run(Shuffled(Fake(tmp_path, slow=0.001), seed), Journal(tmp_path / "j"), kind, 80, 8)
                os._exit(0)
            os._exit(1)
        before = len(seen)
        while len(lines_of(tmp_path / "j")) < before + chance.randrange(3, 16) and not os.waitid(
            os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT
        ):
            time.sleep(chance.random() * 0.003)
        os.kill(child, signal.SIGKILL)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        records = [json.loads(line) for line in lines_of(tmp_path / "j")]
        assert records[:before] == seen
        assert [r["answer"] for r in records] == list(range(len(records)))
        seen, kills = records, kills + (not ended)
        if ended:
            break
    assert kills > 2
    counted = Counted(tmp_path)
    result = run(Shuffled(counted, 99), Journal(tmp_path / "j"), kind, 80, 8)
    assert len(counted.asked) == 80 - len(seen)
    assert result.report["evaluations"] == 80


def lines_of(path):
    """Whole lines: the last may still be in the making."""
    return path.read_bytes().split(b"\n")[:-1]
