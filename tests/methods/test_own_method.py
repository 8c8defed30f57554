"""A method and a dataset of a user's own, as the documentation shows them, from file to policy."""

import re
import shutil
from pathlib import Path

import pytest
import torch

import autoaug_ray
from autoaug_ray import config, own_code, train
from autoaug_ray.commands import smoke
from autoaug_ray.config import Run
from autoaug_ray.errors import UserError
from autoaug_ray.methods import method_class
from autoaug_ray.store.folder import Folder

ROOT = Path(__file__).parents[2]
TEXTS = [
    ROOT / "README.md",
    *(ROOT / f"autoaug_ray/{room}/README.md" for room in ("methods", "data")),
]
FILES = ("my_method.py", "my_learned_method.py", "data/my_data.py")
STUDY = """
dataset: {name: data/my_data.py:stripes, train_size: 80, test_size: 40}
model: {width: 4}
train: {epochs: 2, batch_size: 16}
seeds: 1
methods:
  none:
  mine: {method: my_method.py:Brightness, spread: {grid: [0.1, 0.4]}}
"""


def shown(name):
    """The Python block that begins with `# name`, in whatever text shows it."""
    (block,) = re.findall(
        rf"```python\n(# {name}\n.*?)```", "".join(text.read_text() for text in TEXTS), re.DOTALL
    )
    return block


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """This process has heard of no own code, as a new one."""
    monkeypatch.setattr(own_code, "_known", {})


def write(folder):
    (folder / "data").mkdir()
    for name in FILES:
        (folder / name).write_text(shown(Path(name).name))
    (folder / "own.yaml").write_text(STUDY)
    return folder


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path)


def load(folder, old="", new=""):
    text = (folder / "own.yaml").read_text()
    assert old in text
    (folder / "changed.yaml").write_text(text.replace(old, new) if old else text)
    (study,) = config.load(folder / "changed.yaml")
    return study


def run_of(study):
    return study.run(study.entry("mine"), "final", seed=0, choices={"spread": 0.4})


def test_it_trains_on_its_own_images(folder, monkeypatch, tmp_path_factory):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))  # paths are relative to the study
    run = run_of(load(folder))
    rows = [epoch.row for epoch in train.run(run)]
    assert [row["finished"] for row in rows] == [False, True]
    assert rows[-1]["used_key"] == rows[-1]["run_key"] == run.key
    assert sum(rows[-1]["class_counts"]) == 80 and 0 <= rows[-1]["test_accuracy"] <= 1


def test_one_that_learns_does_so(folder):
    run = run_of(load(folder, "my_method.py:Bright", "my_learned_method.py:LearnedBright"))
    states = [float(epoch.snapshot()["state"]["spread"]) for epoch in train.run(run)]
    assert states[0] != pytest.approx(0.4) and states[0] != states[1]


def test_the_key_is_that_of_the_content_wherever_the_file_lies(folder, tmp_path_factory):
    key = run_of(load(folder)).key
    moved = tmp_path_factory.mktemp("moved") / "study"
    shutil.copytree(folder, moved)
    assert run_of(load(moved)).key == key
    method = moved / "my_method.py"
    method.write_text(method.read_text() + "# another thought\n")
    assert run_of(load(moved)).key != key
    data = folder / "data/my_data.py"
    data.write_text(data.read_text() + "# another thought\n")
    assert run_of(load(folder)).key != key


def test_settings_are_read_back_where_the_code_is_sent_or_located(folder, monkeypatch):
    study = load(folder)
    run = run_of(study)
    sent = own_code.sent([run.method.name, run.dataset.name])
    monkeypatch.setattr(own_code, "_known", {})
    with pytest.raises(ValueError, match="its file was not given"):
        Run.model_validate_json(run.model_dump_json())
    own_code.receive(sent)
    (folder / "my_method.py").unlink()  # a machine without the file
    assert Run.model_validate_json(run.model_dump_json()) == run
    assert [epoch.row["finished"] for epoch in train.run(run)][-1]


def test_a_study_is_read_back_by_another_process_unless_the_code_has_changed(folder, monkeypatch):
    study = load(folder)
    monkeypatch.setattr(own_code, "_known", {})
    again = config.Study.model_validate_json(study.model_dump_json())
    assert again == study and run_of(again).key == run_of(study).key
    monkeypatch.setattr(own_code, "_known", {})
    (folder / "my_method.py").write_text("changed = True\n")
    again = config.Study.model_validate_json(study.model_dump_json())
    with pytest.raises(UserError, match=r"my_method.py is not what it was .*it has changed"):
        run_of(again)


FAULTS = {
    "my_method.py:Brightness": {
        "nowhere.py:Brightness": r"methods.mine.method: .*/nowhere.py cannot be read \(",
        "no_such_module:Mine": "methods.mine.method: no module 'no_such_module'",
        "my_method.py:Bright": "methods.mine.method: .*my_method.py defines no 'Bright'",
        "my_method.py:Field": "methods.mine.method: .*is no method: it must be a subclass",
        "autoaug_ray.methods.base:Method": "methods.mine.method: .*lacks augment",
        "broken.py:Mine": r"methods.mine.method: .*broken.py cannot be imported \(ZeroD",
    },
    "spread:": {
        "spred:": r"methods.mine.spred: unknown key \(did you mean spread\?\); known: contr"
    },
    "[0.1, 0.4]": {"[0.1, 4]": "methods.mine.spread: .*less than or equal to 1, got 4"},
    "data/my_data.py": {"my_data.py": "dataset.name: .*/my_data.py cannot be read"},
}
CASES = [(old, new, message) for old, cases in FAULTS.items() for new, message in cases.items()]


@pytest.mark.parametrize(("old", "new", "message"), CASES, ids=[new for _, new, _ in CASES])
def test_what_is_wrong_is_one_sentence(folder, old, new, message):
    (folder / "broken.py").write_text("x = 1 / 0\n")
    with pytest.raises(UserError, match=message) as error:
        load(folder, old, new)
    assert "\n" not in str(error.value)


def test_a_function_that_returns_no_source_is_named(folder):
    (folder / "data/my_data.py").write_text("def stripes(dataset):\n    return 3\n")
    with pytest.raises(UserError, match="must return a data.Source, got int"):
        list(train.run(run_of(load(folder))))


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The study, run with Ray: its trials are in processes that must be given the code."""
    from autoaug_ray.schedule import cluster, tune

    folder = write(tmp_path_factory.mktemp("own"))
    (study,) = config.load(folder / "own.yaml")
    runs = Folder(folder / "runs")
    cluster.join(2)
    (queue,) = tune.execute([(study, runs)], tune.Watch())
    return folder, runs, queue


def test_workers_train_it_and_its_policy_loads_again(done):
    folder, runs, queue = done
    assert [(d.run.label, d.run.phase, d.outcome, d.error) for d in queue.done].count(
        ("mine", "search", "finished", None)
    ) == 2
    assert all(d.outcome == "finished" for d in queue.done) and len(queue.done) == 4
    path = runs.policy("mine", 0) / "policy.pt"
    with pytest.raises(UserError, match="give load_policy the file that defines it, code='my_meth"):
        autoaug_ray.load_policy(path)
    with pytest.raises(UserError, match="not what it was"):
        autoaug_ray.load_policy(path, code=folder / "data/my_data.py")
    transform = autoaug_ray.load_policy(path, code=folder / "my_method.py")
    images = torch.rand(4, 1, 16, 16)
    assert transform(images).shape == images.shape and not torch.equal(transform(images), images)


def test_a_smoke_run_keeps_it(folder, tmp_path):
    small = smoke.smaller(load(folder), tmp_path / "stand-ins")
    assert small.dataset.name.startswith("my_data.py:stripes@")
    (method,) = {type(small.entry("mine").first_method)}
    assert method is method_class(small.entry("mine").hyperparameters["name"])
    (epoch,) = train.run(run_of(small))
    assert epoch.row["finished"]
