"""Top-1 and top-5 accuracy, against torch's own sorting and, through a training, a page."""

import contextlib
from types import SimpleNamespace

import pytest
import torch

from autoaug_ray import data, train
from autoaug_ray.evaluation import evaluate


@pytest.mark.parametrize("classes", [3, 5, 6, 20])
def test_accuracies_are_counted_by_hand(classes):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1200, classes, generator=generator)
    labels = torch.randint(0, classes, (1200,), generator=generator)
    images = torch.arange(1200).reshape(-1, 1, 1, 1).expand(-1, 3, 1, 1)
    split = data.Split((images % 256).to(torch.uint8), labels)
    seen = iter(logits.split(500))
    method = SimpleNamespace(predict=lambda learner, x, state: next(seen))
    learner = SimpleNamespace(evaluated=contextlib.nullcontext)
    found = evaluate(method, learner, split, None)
    order = logits.argsort(dim=1, descending=True)
    ranks = [row.tolist().index(label) for row, label in zip(order, labels.tolist(), strict=True)]
    assert found.mean_accuracy == pytest.approx(sum(r == 0 for r in ranks) / 1200)
    if classes <= 5:
        assert found.top5 is None
    else:
        assert found.top5 == pytest.approx(sum(r < 5 for r in ranks) / 1200)


def test_a_final_run_tells_it_once(final_run):
    *before, last = [epoch.row for epoch in train.run(final_run("none"))]
    assert all(row["test_top5"] is None for row in before)
    assert last["test_accuracy"] < last["test_top5"] <= 1
