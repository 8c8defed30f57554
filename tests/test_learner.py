import pytest
import torch
from torch import nn
from torch.nn import functional as F

from autoaug_ray import train
from autoaug_ray.errors import RunError
from autoaug_ray.learner import Learner
from autoaug_ray.settings.training import Training


def learner(**training):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 3)
    ).double()
    settings = Training(**{"epochs": 1, **training})
    return Learner(model, settings, total_steps=10, noise=torch.Generator().manual_seed(0))


class Double(Learner):
    """Evaluates in float64, so that two ways to take a step can be held equal."""

    def logits(self, images):
        return self.model(images)


GROUPS = {"lr_decay": 0.5, "weight_decay_on": "matrices", "weight_decay": 0.1}


@pytest.mark.parametrize(
    "training",
    [
        {},
        {"nesterov": True},
        {"optimiser": "adam"},
        {"optimiser": "adamw", "weight_decay": 0.1},
        {"optimiser": "adamw", **GROUPS},
        {"nesterov": True, **GROUPS},
        {"label_smoothing": 0.2},
    ],
    ids=str,
)
def test_the_look_ahead_takes_the_step_that_the_trainer_takes(training):
    one, smoothing = learner(**training), training.get("label_smoothing", 0.0)
    one.__class__ = Double
    x, y = torch.rand(8, 1, 8, 8).double(), torch.randint(3, (8,))
    for _ in range(4):  # beyond the first step, momentum and schedule matter
        one.begin_step()
        w = one.weights()
        loss = one.loss_at(x, y, smoothed=True)(w)
        g = dict(zip(w, torch.autograd.grad(loss, list(w.values())), strict=True))
        ahead, _ = one.rule(w, one.buffers(), g)
        ahead = {k: v.detach().clone() for k, v in ahead.items()}
        one.descend(F.cross_entropy(one.logits(x), y, label_smoothing=smoothing))
        one.end_step()
        for name, p in one.model.named_parameters():
            torch.testing.assert_close(p.detach(), ahead[name], rtol=1e-10, atol=1e-12)


def test_apply_is_descend_with_gradients_from_elsewhere():
    a, b = learner(), learner()
    a.__class__ = b.__class__ = Double
    x, y = torch.rand(8, 1, 8, 8).double(), torch.randint(3, (8,))
    for one in (a, b):
        one.begin_step()
    a.descend(F.cross_entropy(a.logits(x), y))
    w = b.weights()
    grads = torch.autograd.grad(b.loss_at(x, y, real_pass=True)(w), list(w.values()))
    b.apply(dict(zip(w, grads, strict=True)))
    for p, q in zip(a.model.state_dict().values(), b.model.state_dict().values(), strict=True):
        torch.testing.assert_close(p, q)


def test_a_look_ahead_leaves_batch_norm_alone():
    one = learner()
    before = {k: v.clone() for k, v in one.model.state_dict().items()}
    one.loss_at(torch.full((8, 1, 8, 8), 9.0).double(), torch.zeros(8, dtype=torch.long))(
        one.weights()
    )
    for k, v in one.model.state_dict().items():
        assert torch.equal(v, before[k]), k


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_what_was_used_is_what_the_optimiser_holds(name):
    asked = Training(epochs=1, optimiser=name, weight_decay=0.02)
    one = learner(optimiser=name, weight_decay=0.02)
    assert one.used == asked
    one.optimiser.param_groups[0]["weight_decay"] = 0.0
    assert one.used != asked


def plain_net(**training):
    """Without batch norm, so that parts and wholes are the same function."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.SiLU(), nn.Flatten(), nn.Linear(144, 3)).double()
    settings = Training(epochs=1, batch_size=10, **training)
    return Double(model, settings, total_steps=10, noise=torch.Generator())


@pytest.mark.parametrize("accumulate", [2, 3, 5])
def test_a_step_in_parts_is_that_of_the_whole_batch(accumulate):
    x, y = torch.rand(10, 1, 8, 8).double(), torch.randint(3, (10,))
    strength = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    gradients = []
    learners = plain_net(), plain_net(accumulate=accumulate)
    for one in learners:
        strength.grad = None
        one.begin_step()
        loss = one.train_on(x * (1 + strength), y)
        gradients.append((loss, strength.grad))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-10, atol=1e-14)
    for p, q in zip(*(one.model.parameters() for one in learners), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-14)


def test_a_look_ahead_in_parts_is_that_of_the_whole_batch():
    x, y, c = torch.rand(10, 1, 8, 8).double(), torch.randint(3, (10,)), torch.rand(10).double()
    values = []
    for one in (plain_net(), plain_net(accumulate=4)):
        w = one.weights()
        loss = one.loss_at(lambda part: 2 * x[part], y, weights=c)
        terms = getattr(loss, "terms", [loss])
        grads = [torch.autograd.grad(term(w), list(w.values())) for term in terms]
        values.append(
            [loss(w).detach(), *(torch.stack(g).sum(0) for g in zip(*grads, strict=True))]
        )
    torch.testing.assert_close(values[0], values[1], rtol=1e-10, atol=1e-14)


def test_each_part_writes_batch_norm_once_however_often_it_is_passed():
    one, x = learner(accumulate=2, batch_size=8), torch.rand(8, 1, 8, 8).double()
    loss = one.loss_at(x, torch.zeros(8, dtype=torch.long), real_pass=True)
    for _ in range(2):
        for term in loss.terms:
            term(one.weights())
    assert int(one.model[1].num_batches_tracked) == 2


def test_a_finished_loss_cannot_be_worked_off_in_parts():
    one = plain_net(accumulate=2)
    with pytest.raises(RunError, match=r"train.accumulate: 2 needs .* learner.train_on"):
        one.descend(
            F.cross_entropy(
                one.logits(torch.rand(10, 1, 8, 8).double()), torch.zeros(10, dtype=torch.long)
            )
        )


def test_parts_of_one_image_are_refused():
    with pytest.raises(ValueError, match="accumulate: 6 parts of a batch_size of 10"):
        Training(batch_size=10, accumulate=6)


class Counting(nn.Module):
    """Batch norm, and whole numbers that an average must leave as they are."""

    def __init__(self):
        super().__init__()
        self.norm, self.last = nn.BatchNorm1d(4), nn.Linear(4, 3)
        self.register_buffer("index", torch.arange(200))

    def forward(self, x):
        return self.last(self.norm(x))


def test_the_average_is_evaluated_and_the_weights_go_on():
    """The average of all steps in closed form: the weights after the first step, then 1 - decay of
    those after each."""
    decay = 0.9
    settings = Training(batch_size=8, lr=0.5, ema=decay)
    one = Learner(Counting(), settings, total_steps=4, noise=torch.Generator())
    seen = []
    for _ in range(4):
        one.begin_step()
        one.train_on(torch.randn(8, 4) + 1, torch.randint(3, (8,)))
        one.end_step()
        seen.append({k: v.clone() for k, v in one.model.state_dict().items()})
    x, shares = torch.randn(5, 4), [decay**3, *((1 - decay) * decay**i for i in (2, 1, 0))]
    with one.evaluated():
        for name, value in one.model.state_dict().items():
            if value.is_floating_point():
                expected = sum(a * s[name] for a, s in zip(shares, seen, strict=True))
                torch.testing.assert_close(value, expected)
        assert not torch.equal(one.model.last.weight, seen[-1]["last.weight"])
        assert torch.equal(one.model.index, torch.arange(200))
        assert torch.equal(one.logits(x), one.logits(x.repeat(2, 1))[:5])  # no batch's statistics
    assert one.model.training
    assert all(torch.equal(v, seen[-1][k]) for k, v in one.model.state_dict().items())


def test_logits_at_other_weights_are_those_of_a_model_that_has_them():
    """Batch norm takes the batch's own statistics, and keeps none of them."""
    here, there = learner(), learner()
    with torch.no_grad():
        for p in there.model.parameters():
            p += 0.1
    x = torch.rand(8, 1, 8, 8).double()
    before = {k: b.clone() for k, b in here.model.named_buffers()}
    found = here.logits_at(x, dict(there.model.named_parameters()))
    torch.testing.assert_close(found, there.model(x))
    assert all(torch.equal(b, before[k]) for k, b in here.model.named_buffers())


class Dead(torch.nn.Module):
    """A network whose only hidden units answer to nothing."""

    def __init__(self, classes):
        super().__init__()
        self.hidden, self.out = torch.nn.Linear(1, 4), torch.nn.Linear(4, classes)
        torch.nn.init.constant_(self.hidden.bias, -1e4)

    def forward(self, images):
        return self.out(self.hidden(images.mean((2, 3))[:, :1]).relu())


@pytest.mark.parametrize("method", ["none", "bilevel", "trivialaugment"])
def test_a_dead_classifier_fails_every_method_alike(method, final_run, monkeypatch):
    monkeypatch.setattr(train.models, "build", lambda *_, **__: Dead(10))
    with pytest.raises(RunError, match="gives all images the same logits.*lower train.lr"):
        list(train.run(final_run(method)))
