"""An outer step by alignment: what it moves theta by, and that the classifier's step is its own."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from autoaug_ray.data import Edits, Split
from autoaug_ray.learner import Learner
from autoaug_ray.maths import alignment
from autoaug_ray.maths.gumbel import likelihood_ratio
from autoaug_ray.methods import bilevel, generative
from autoaug_ray.methods.base import Task
from autoaug_ray.methods.bilevel import Bilevel
from autoaug_ray.settings.training import Training

CPU = torch.device("cpu")
TASK = Task(3, 6, 6, (4,) * 3, (0.5,) * 3)


@pytest.fixture(autouse=True)
def precise(monkeypatch):
    """float64 but for the logits, and a difference over a short way, nearly a derivative."""
    for module in (bilevel, generative):
        monkeypatch.setattr(module, "as_float", lambda x: x.double() / 255)
    monkeypatch.setattr(alignment, "shifted", partial(alignment.shifted, distance=1e-4))
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Step:
    """One step of a method on a small smooth net."""

    def __init__(
        self, edits=False, normalise="average", flip="horizontal", learn="hypergradient",
        dropout=0.0, **training,
    ):  # fmt: skip
        torch.manual_seed(0)
        self.model = nn.Sequential(
            nn.Flatten(), nn.Linear(108, 6), nn.Tanh(), nn.Dropout(dropout), nn.Linear(6, 3)
        )
        training = Training(**{"lr": 0.5, **training})
        self.learner = Learner(self.model, training, total_steps=10, noise=seeded())
        self.learner.begin_step()
        self.method = Bilevel(
            estimator="alignment", group="affine+color", flip=flip, crop=1, cutout=4,
            normalise=normalise, edits=("local",) if edits else (), learn=learn, every=1, until=1.0,
        )  # fmt: skip
        self.state = self.method.start(TASK, 0, CPU)
        torch.manual_seed(1)
        self.batch, self.meta = (Split(pixels(), torch.arange(16) % 3) for _ in range(2))
        if edits:
            where = torch.arange(16)[:, None], torch.ones(16, 1, dtype=torch.long)
            self.batch = Split(self.batch.images, self.batch.labels, Edits(pixels(), *where))

    def __call__(self):
        logs = self.method.step(self.learner, self.batch, lambda n: self.meta, self.state)
        self.learner.end_step()
        return logs

    def moved(self):
        """The gradients that theta was moved by."""
        self()
        return [p.grad.clone() for p in self.state.parameters()]

    def oracle(self):
        """d<d, g>/dtheta by double backward through the images that the step sees."""
        noise, w = seeded(), list(self.learner.weights().values())
        x, kind = self.method._drawn(self.state, self.batch, noise)
        before = noise.get_state()
        flips = self.method.draw_flips(self.state, x, noise)
        noise.set_state(before)
        images = self.method.augment(self.state, x, noise)
        each = F.cross_entropy(self.model(images), self.batch.labels, reduction="none")
        if kind is not None:
            log_alpha = self.state.mixture.log_alpha[self.batch.labels]
            each = each * likelihood_ratio(log_alpha, kind)
        if self.method.flip == "learned":
            logit = self.state.flip.logit
            log_p = F.logsigmoid(torch.where(flips, logit, -logit))
            each = each * torch.exp(log_p - log_p.detach())
        g = torch.autograd.grad(each.mean(), w, create_graph=True)
        meta_loss = F.cross_entropy(self.model(self.meta.images / 255), self.meta.labels)
        d = [-self.learner.rule.lr * v for v in torch.autograd.grad(meta_loss, w)]
        if self.method.normalise != "none":  # the average of one gradient is that gradient
            c = sum((a * b).sum() for a, b in zip(d, g, strict=True)) / sum(
                b.square().sum() for b in g
            )
            d = [a - c.detach() * b.detach() for a, b in zip(d, g, strict=True)]
        s = sum((a * b).sum() for a, b in zip(d, g, strict=True))
        theta = list(self.state.parameters())
        return torch.autograd.grad(s, theta, materialize_grads=True)


def seeded():
    return torch.Generator().manual_seed(0)


def pixels():
    return torch.randint(60, 200, (16, 3, 6, 6), dtype=torch.uint8)


@pytest.mark.parametrize("edits", [False, True])
@pytest.mark.parametrize("normalise", ["average", "batch", "none"])
@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_theta_moves_down_the_derivative_of_the_alignment(edits, normalise, accumulate, precision):
    """In bf16, which leaves float64 alone, both ends of the difference are computed anew."""
    # Where images are drawn, flips are, too: both by the probability of what was drawn.
    flip = "learned" if edits else "horizontal"
    oracle = Step(edits, normalise, flip).oracle()
    moved = Step(edits, normalise, flip, accumulate=accumulate, precision=precision).moved()
    assert len(moved) == len(oracle) and all(float(h.abs().max()) > 0 for h in oracle[-1:])
    for a, b in zip(moved, oracle, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=3e-3 * float(b.abs().max()))


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_the_classifier_takes_the_step_that_it_would_take_anyway(accumulate, optimiser):
    settings = {"accumulate": accumulate, "optimiser": optimiser, "lr": 0.01}
    learning, frozen = Step(**settings), Step(learn="off", **settings)
    assert learning()["train_loss"] == pytest.approx(float(frozen()["train_loss"]))
    for a, b in zip(learning.model.parameters(), frozen.model.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_averages_hold_what_the_steps_had():
    """After two steps, r is the mean of their gradients; one meta batch serves both."""
    step = Step()
    step.method = step.method.model_copy(update={"meta_every": 2})
    seen = []
    for _ in range(2):
        step.learner.begin_step()
        step()
        seen.append(step.learner.gradients())
    for k, r in step.state.training_gradient.values.items():
        torch.testing.assert_close(r, (seen[0][k] + seen[1][k]) / 2)
    assert step.state.meta_gradient.count == 1


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_both_ends_of_the_difference_drop_the_same_units(accumulate, precision):
    oracle = Step(edits=True, dropout=0.5, accumulate=accumulate).oracle()
    moved = Step(edits=True, dropout=0.5, accumulate=accumulate, precision=precision).moved()
    for a, b in zip(moved, oracle, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=3e-3 * float(b.abs().max()))


@pytest.mark.parametrize("name, value", [("unroll", 2), ("fraction", 0.5)])
def test_what_alignment_cannot_do_is_said(name, value):
    with pytest.raises(ValueError, match=f"{name}: {value} needs estimator: exact"):
        Bilevel(estimator="alignment", **{name: value})
