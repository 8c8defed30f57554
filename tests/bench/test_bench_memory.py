"""`bench memory`, tiny: what must hold of its figures whatever the clock says."""

import json

import pytest

from autoaug_ray.bench import __main__ as command
from autoaug_ray.bench import hypergradient, memory
from autoaug_ray.settings.classifier import Classifier
from autoaug_ray.settings.dataset import Dataset


@pytest.mark.nightly
def test_memory(tmp_path, capsys, monkeypatch):
    small = Dataset(name="fashion-mnist-mini", train_size=320, test_size=60)
    monkeypatch.setattr(hypergradient, "DATASET", small)
    monkeypatch.setattr(memory, "COUNTED", Classifier(name="resnet18"))
    out = tmp_path / "m.json"
    arguments = "--model resnet20 --width 4 --warmup 1 --batches 1 --imagenet 16 --json".split()
    assert command.main(["memory", *arguments, str(out)]) == 0
    printed = capsys.readouterr().out
    figures = json.loads(out.read_text())
    steps = {row["name"]: row for row in figures["steps"]}
    assert list(steps) == list(memory.WAYS) and all(name in printed for name in steps)
    whole, four, again = (
        steps[name] for name in ("the whole batch", "in 4 parts", "blocks recomputed")
    )
    assert whole["cost"] == 1.0 and whole["cosine"]["lowest"] > 0.9999
    assert again["cosine"]["lowest"] > 0.999
    assert again["megabytes"] < 0.8 * whole["megabytes"]
    assert four["megabytes"] < 0.4 * whole["megabytes"]
    size = figures["imagenet"]["gigabytes"]
    assert size["in 4 parts"] < size["in 2 parts"] < size["the whole batch"]
    assert size["blocks recomputed"] < size["the whole batch"]
    assert command.main(["memory", "--model", "cnn", *arguments[2:], str(out)]) == 2
