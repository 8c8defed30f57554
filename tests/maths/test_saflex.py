"""SAFLEX's closed form against the real validation loss after a real step of SGD, in float64."""

from itertools import product

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from autoaug_ray.maths import alignment, saflex
from autoaug_ray.maths import hypergradient as hg

LR = 1e-5


class Problem:
    """Five augmented samples of three classes, twelve clean images, and a small smooth net."""

    def __init__(self):
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
        self.w = {k: p.detach().requires_grad_() for k, p in self.net.named_parameters()}
        self.x, self.labels = torch.randn(5, 4).double(), torch.tensor([0, 1, 2, 0, 1])
        self.clean, self.classes = torch.randn(12, 4).double(), torch.arange(12) % 3

    def logits(self, x, w):
        return functional_call(self.net, w, (x,))

    def meta_loss(self, w):
        return F.cross_entropy(self.logits(self.clean, w), self.classes)

    def after_step(self, targets):
        """L_v(w'), where the row of a sample in `targets` (5, 3) is its weight times its label."""
        each = -(targets * self.logits(self.x, self.w).log_softmax(1)).sum(1)
        g = hg.gradient(each.mean(), self.w)
        with torch.no_grad():
            return self.meta_loss({k: p - LR * g[k] for k, p in self.w.items()})

    def alignments(self, distance=1e-6):
        v = hg.gradient(self.meta_loss(self.w), self.w)
        there, eps = alignment.shifted(self.w, {k: -x for k, x in v.items()}, distance)
        before, after = self.logits(self.x, self.w), self.logits(self.x, there)
        return saflex.alignments(before, after, eps).detach()


def one_hot(labels):
    return F.one_hot(labels, 3).double()


def test_alignments_are_the_derivatives_of_the_loss_after_a_step():
    problem, h = Problem(), 0.1
    a, base = problem.alignments(), torch.rand(5, 3).double()
    found = torch.zeros(5, 3).double()
    for i, k in product(range(5), range(3)):
        move = torch.zeros(5, 3).double()
        move[i, k] = h
        ends = problem.after_step(base + move), problem.after_step(base - move)
        found[i, k] = (ends[0] - ends[1]) / (2 * h)
    torch.testing.assert_close(found, -LR / 5 * a, rtol=1e-3, atol=1e-3 * LR / 5)


def test_a_samples_weight_has_the_derivative_of_its_labels_alignment():
    problem, h = Problem(), 0.1
    y = torch.rand(5, 3).double().softmax(1)
    gain = (y * problem.alignments()).sum(1)
    for i in range(5):
        s = torch.ones(5).double()
        s[i] += h
        rise = (problem.after_step(s[:, None] * y) - problem.after_step(y)) / h
        torch.testing.assert_close(rise, -LR / 5 * gain[i], rtol=1e-3, atol=1e-3 * LR / 5)


def test_no_other_labels_let_the_real_loss_fall_further():
    problem = Problem()
    best = saflex.soft_labels(problem.alignments(), problem.labels, prior=0, temperature=0)
    found = problem.after_step(best)
    for labels in product(range(3), repeat=5):
        assert found <= problem.after_step(one_hot(torch.tensor(labels))) + 1e-15


def test_no_other_weights_let_the_real_loss_fall_further():
    problem = Problem()
    y = one_hot(problem.labels)
    s = saflex.weights(problem.alignments(), y)
    assert 0 < s.sum() < 5, "the problem tells nothing"
    found = problem.after_step(s[:, None] * y)
    for weights in product((0.0, 1.0), repeat=5):
        assert found <= problem.after_step(torch.tensor(weights).double()[:, None] * y) + 1e-15


@pytest.mark.parametrize("temperature", [0.0, 0.3, 2.0])
@pytest.mark.parametrize("prior", [0.0, 1.5])
def test_soft_labels_maximise_alignment_prior_and_entropy(temperature, prior):
    problem = Problem()
    a = problem.alignments()
    score = a / a.square().mean().sqrt() + prior * one_hot(problem.labels)

    def objective(y):
        return (y * score).sum(1) + temperature * torch.special.entr(y).sum(1)

    y = saflex.soft_labels(a, problem.labels, prior, temperature)
    torch.testing.assert_close(y.sum(1), torch.ones(5).double())
    others = torch.distributions.Dirichlet(torch.full((3,), 0.5).double()).sample((2000, 5))
    for other in [*others, *(one_hot(torch.full((5,), k)) for k in range(3))]:
        assert (objective(other) <= objective(y) + 1e-12).all()


def test_labels_do_not_depend_on_the_length_of_gradients_and_stay_without_any():
    a = Problem().alignments()
    labels = torch.tensor([0, 1, 2, 0, 1])
    y = saflex.soft_labels(a, labels, 1.5, 0.5)
    torch.testing.assert_close(saflex.soft_labels(1e-6 * a, labels, 1.5, 0.5), y)
    none = saflex.soft_labels(0 * a, labels, 1.5, 0.0)
    assert torch.equal(none, one_hot(labels))
    assert torch.equal(saflex.weights(0 * a, none), torch.ones(5).double())


def test_targets_make_the_mean_that_of_the_samples_that_are_kept():
    torch.manual_seed(0)
    logits, y = torch.randn(5, 3).double(), torch.rand(5, 3).double().softmax(1)
    s = torch.tensor([1.0, 0, 1, 1, 0]).double()
    kept = F.cross_entropy(logits[s > 0], y[s > 0])
    torch.testing.assert_close(F.cross_entropy(logits, saflex.targets(y, s)), kept)
    assert F.cross_entropy(logits, saflex.targets(y, 0 * s)) == 0
