"""SAFLEX's step: what it does to samples that an augmentation spoilt, and what it computes."""

from functools import partial

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F

from autoaug_ray.data import Split
from autoaug_ray.learner import Learner
from autoaug_ray.maths import alignment, saflex
from autoaug_ray.methods.base import Task, as_float
from autoaug_ray.methods.saflex import Saflex
from autoaug_ray.settings.training import Training

TASK = Task(1, 6, 6, (32, 32), (0.3,))
FLIPS = {"name": "predefined", "translate": 0.0}


def sides():
    """Images whose class is the side that is bright: a mirrored one belongs to the other class."""
    torch.manual_seed(0)
    images = torch.randint(0, 60, (64, 1, 6, 6), dtype=torch.uint8)
    labels = torch.arange(64) % 2
    images[labels == 0, :, :, :3] += 150
    images[labels == 1, :, :, 3:] += 150
    return Split(images, labels)


def bright(images):
    """The class (B,) that images (B, 1, 6, 6) show."""
    return (images[..., 3:].mean((1, 2, 3)) > images[..., :3].mean((1, 2, 3))).long()


class Steps:
    """A few steps of a linear classifier on the sides, and what each of them decided."""

    def __init__(self, monkeypatch, dropout=0.0, **settings):
        self.batch = sides()
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Dropout(dropout), nn.Linear(36, 2))
        noise = torch.Generator().manual_seed(0)
        training = Training(lr=0.05, momentum=0.0, weight_decay=0.0)
        self.learner = Learner(model, training, total_steps=20, noise=noise)
        self.method = Saflex(then=FLIPS, **settings)
        self.state = self.method.start(TASK, 0, torch.device("cpu"))
        self.shown, self.decided = [], []
        logits, targets = self.learner.logits, saflex.targets

        def seen(images):
            self.shown.append(images)
            return logits(images)

        def decide(y, s):
            self.decided.append((y, s))
            return targets(y, s)

        monkeypatch.setattr(self.learner, "logits", seen)
        monkeypatch.setattr(saflex, "targets", decide)

    def __call__(self, n=1):
        for _ in range(n):
            self.learner.begin_step()
            logs = self.method.step(self.learner, self.batch, lambda n: self.batch, self.state)
            self.learner.end_step()
        return logs

    def clean_loss(self):
        out = self.learner.model(as_float(self.batch.images))
        return float(F.cross_entropy(out, self.batch.labels).detach())


def test_samples_that_show_another_class_are_left_out(monkeypatch):
    steps = Steps(monkeypatch)
    logs = steps(20)
    for images, (_, s) in zip(steps.shown[5:], steps.decided[5:], strict=True):
        spoilt = bright(images) != steps.batch.labels
        assert 10 < spoilt.sum() < 54
        assert s[spoilt].mean() < 0.1 and s[~spoilt].mean() > 0.9
    assert 0.3 < logs["kept"] < 0.7
    control = Steps(monkeypatch, learn="off")
    control(20)
    assert steps.clean_loss() < 0.4 < 0.6 < control.clean_loss()


def test_without_a_prior_they_get_the_label_of_the_class_that_they_show(monkeypatch):
    steps = Steps(monkeypatch, prior=0.0, temperature=0.2)
    logs = steps(20)
    for images, (y, s) in zip(steps.shown[5:], steps.decided[5:], strict=True):
        shows = y.gather(1, bright(images)[:, None])
        assert shows.mean() > 0.9 and s.mean() > 0.9
    assert 0.3 < logs["p/label"] < 0.7
    assert steps.clean_loss() < 0.4


def test_a_step_is_one_of_sgd_on_what_is_aligned_with_the_meta_gradient(monkeypatch):
    """By the gradients of single samples, with labels that the prior holds."""
    steps = Steps(monkeypatch, prior=1000.0)
    model, labels = steps.learner.model, steps.batch.labels
    weights = list(model.parameters())
    steps(3)
    before = [p.detach().clone() for p in weights]
    of_meta = F.cross_entropy(model(as_float(steps.batch.images)), labels)
    v = torch.autograd.grad(of_meta, weights)
    logs = steps()
    after = [p.detach().clone() for p in weights]
    with torch.no_grad():
        for p, value in zip(weights, before, strict=True):
            p.copy_(value)
    each = F.cross_entropy(model(steps.shown[-1]), labels, reduction="none")
    of_each = [torch.autograd.grad(x, weights, retain_graph=True) for x in each]
    aligned = [sum((a * b).sum() for a, b in zip(g, v, strict=True)) for g in of_each]
    kept = torch.stack(aligned) > 0
    assert 0 < kept.sum() < 64
    assert logs["kept"] == kept.float().mean() and logs["p/label"] == 1
    g = torch.autograd.grad(each[kept].mean(), weights)
    lr = steps.learner.rule.lr
    for new, old, slope in zip(after, before, g, strict=True):
        torch.testing.assert_close(new, old - lr * slope)


def test_dropout_is_the_same_in_both_passes_of_the_difference(monkeypatch):
    """Otherwise the alignments were those of the units that were dropped."""
    distances = []

    def alignments(before, after, eps):
        distances.append(float((after - before).abs().max()))
        return torch.zeros_like(before)

    monkeypatch.setattr(alignment, "shifted", partial(alignment.shifted, distance=1e-5))
    monkeypatch.setattr(saflex, "alignments", alignments)
    Steps(monkeypatch, dropout=0.5)(2)
    assert 0 < max(distances) < 1e-3


def test_the_control_trains_as_its_policy_alone(monkeypatch):
    steps = Steps(monkeypatch, learn=False)
    assert steps.method.learn == "off" and not steps.method.learns and steps.method.uses_meta
    plain = Steps(monkeypatch)
    plain.method = plain.method.then
    assert steps(3) == plain(3)


def test_it_needs_whole_batches():
    with pytest.raises(ValueError, match=r"^method: saflex .*train.accumulate: 1, got 2$"):
        Saflex().check(Training(accumulate=2))


def test_a_setting_of_what_is_below_it_is_told_by_its_name():
    with pytest.raises(ValueError, match=r"^then\.crop"):
        Saflex(then={"name": "randaugment", "crop": 40}).check_images(1, 28, 28)
    with pytest.raises(ValidationError, match="temperature"):
        Saflex(temperature=-1)
