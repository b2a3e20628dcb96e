"""Tasks by name, by what data are for, and from users' files."""

from pathlib import Path

import pytest
import torch

from sentei.data import Data
from sentei.errors import ConfigError
from sentei.tasks import TASKS, Classification, Detection, Segmentation, Task, task_of

FILE = """
from sentei.tasks import Task

class Complete(Task):
    metric = "rmse"
    def loss(self, output, batch): return output.sum()
    def measure(self, model, batches): return {"rmse": 1.0}

class WithSetting(Complete):
    def __init__(self, weight=1.0): self.weight = weight

class Half(Task):
    metric = "rmse"
    def loss(self, output, batch): return output.sum()

class Nameless(Task):
    def loss(self, output, batch): return output.sum()
    def measure(self, model, batches): return {}

class Stranger:
    def loss(self, output, batch): return output.sum()

class Demanding(Complete):
    def __init__(self, weight): self.weight = weight

def make(): return WithSetting(2.0)
def number(): return 3
ready = WithSetting(3.0)
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    return str(path)


def test_names_and_tasks_themselves() -> None:
    assert [task_of(name).name for name in TASKS] == list(TASKS) == ["classification", "segmentation", "detection"]
    task = Segmentation(ignore=0)
    assert task_of(task) is task
    assert isinstance(task_of(None), Classification)


def test_unless_told_the_data_decide() -> None:
    batches = [(torch.zeros(2, 3), torch.zeros(2).long())]
    assert isinstance(task_of(None, Data.of(batches)), Classification)
    split = Data.of(batches).train
    data = Data("coco:x", split, split, split, description={"task": "detection"})
    assert isinstance(task_of(None, data), Detection)
    assert isinstance(task_of("segmentation", data), Segmentation)
    assert [task_of(None, ref).name for ref in ("digits", "imagefolder:x", "segmentation:x", "coco:x", "x.py:f")] == [
        "classification", "classification", "segmentation", "detection", "classification",
    ]  # fmt: skip


def test_users_files(file: str) -> None:
    assert task_of(f"{file}:Complete").metric == "rmse"
    assert [task_of(f"{file}:{name}").settings["weight"] for name in ("WithSetting", "make", "ready")] == [1, 2, 3]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Half", "class Half does not write measure"),
        ("Nameless", "class Nameless has no `metric`"),
        ("Stranger", r"class Stranger is not a sentei.Task; it lacks metric, measure. Write class Stranger\(Task\)"),
        ("Demanding", "failed without arguments: TypeError"),
        ("number", "is a int; expected a subclass of sentei.Task"),
        ("absent", "'absent'.*Complete"),
    ],
)
def test_what_is_no_complete_task_is_refused(file: str, name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        task_of(f"{file}:{name}")


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Unknown task 'segmentaton'. Did you mean 'segmentation'"):
        task_of("segmentaton")
    with pytest.raises(ConfigError, match="expected a subclass of sentei.Task"):
        task_of(3)  # type: ignore[arg-type]


def test_a_class_is_taken_for_its_task() -> None:
    class Mine(Classification):
        pass

    assert isinstance(task_of(Mine), Mine)  # type: ignore[arg-type]
    assert isinstance(task_of(Mine), Task)  # type: ignore[arg-type]
