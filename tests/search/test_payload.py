"""What goes to a worker: model and data once, and for each structure its widths alone."""

import multiprocessing.connection as connection

import numpy as np
import torch
import torchvision

import sentei
from sentei.search import Crew, Job, open_executor
from sentei.search.inherit import Inheritance
from sentei.surgery import slim
from tests.search.fakes import Fake, Noted

PAYLOAD = 20_000_000


class Heavy(Noted, Fake):
    def __init__(self, folder):
        super().__init__(folder)
        self.weights = torch.zeros(PAYLOAD // 4)


def test_an_evaluator_is_packed_once_and_opened_once_by_each_worker(tmp_path, monkeypatch):
    sent = []
    original = connection.Connection.send_bytes
    monkeypatch.setattr(connection.Connection, "send_bytes", lambda c, b: (sent.append(len(b)), original(c, b))[1])
    small, pickler = [], connection._ForkingPickler

    class Counted(pickler):
        @classmethod
        def dumps(cls, thing, protocol=None):
            found = pickler.dumps(thing, protocol)
            small.append(len(found))
            return found

    monkeypatch.setattr(connection, "_ForkingPickler", Counted)
    with open_executor(Crew("process", 2), Heavy(tmp_path)) as executor:
        outcomes = [*executor.run([Job(i, (i, 1, 2)) for i in range(10)])]
        outcomes += executor.run([Job(i, (i, 1, 2)) for i in range(10, 20)])
    assert sorted(o.job.number for o in outcomes) == list(range(20))
    assert (tmp_path / "packed").read_text() == "x"
    workers = len((tmp_path / "opened").read_text())
    heavy = [size for size in sent if size > 10_000]
    assert 1 <= workers <= len(heavy) <= 2  # one that started late may have been ended before it had opened it
    assert all(PAYLOAD <= size < 1.01 * PAYLOAD for size in heavy)
    assert len(small) >= 20
    assert max(small) < 10_000


def test_a_candidate_of_a_supernet_holds_its_own_slices_and_no_copy_of_the_network():
    model = torchvision.models.resnet18().eval()
    graph = sentei.trace(model, torch.zeros(1, 3, 64, 64))
    widths = np.array([g.width if g.frozen else g.width // 2 for g in graph.groups])
    plan = Inheritance(model, graph, "l1").plan(widths)
    whole = {t.untyped_storage().data_ptr(): t.nbytes for t in [*model.parameters(), *model.buffers()]}
    parts = sum(p.nbytes for p in sentei.cut(model, graph, plan).state_dict().values())
    with torch.no_grad(), slim(model, graph, plan) as subnet:
        tensors = [*subnet.parameters(), *subnet.buffers()]
        own = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    extra = sum(size for place, size in own.items() if place not in whole)
    assert extra <= 1.01 * parts < 0.4 * sum(whole.values())
    for t in [*model.parameters(), *model.buffers()]:
        assert t.untyped_storage().data_ptr() in whole  # the network's own tensors are back, none was replaced
