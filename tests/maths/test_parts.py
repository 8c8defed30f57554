"""Hypergradients of batches that are worked off in parts: against whole batches and differences."""

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from autoaug_ray.maths import hypergradient as hg
from autoaug_ray.maths.alignment import held
from autoaug_ray.maths.augmenter import Augmenter, parameter_names, transform

SIZE = 10


class Problem:
    """A net without batch norm, so that parts and wholes are the same function; all float64."""

    def __init__(self, steps, adam=False, dropout=0.0):
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Dropout(dropout), nn.Flatten(), nn.Linear(144, 3)
        ).double()
        names = parameter_names("affine+color", 3)
        self.augmenter = Augmenter(names, "small", symmetric=False, spread=0.2).double()
        self.x = [0.4 + 0.1 * torch.rand(SIZE, 3, 8, 8).double() for _ in range(steps)]
        self.y = [torch.randint(3, (SIZE,)) for _ in range(steps)]
        self.z = [0.5 * torch.rand(SIZE, self.augmenter.noise_size).double() for _ in range(steps)]
        self.meta = torch.rand(SIZE, 3, 8, 8).double(), torch.randint(3, (SIZE,))
        self.w = {k: p.detach().requires_grad_() for k, p in self.net.named_parameters()}
        self.m = {k: 0.01 * torch.randn_like(v) for k, v in self.w.items()}
        self.rules = [hg.SGD(0.3, 0.9, 5e-4, nesterov=True)] * steps
        if adam:
            self.m |= {k + hg.SQUARE: 1e-4 * torch.rand_like(v) for k, v in self.w.items()}
            self.rules = [hg.Adam(lr=0.01, weight_decay=1e-3, step=3 + i) for i in range(steps)]
        self.theta = list(self.augmenter.parameters())

    def loss(self, w, x, y):
        return F.cross_entropy(functional_call(self.net, dict(w), (x,)), y)

    def train_loss(self, step, part=slice(None)):
        def loss(w):
            p = self.augmenter(self.z[step][part])
            return self.loss(
                w, transform(self.x[step][part], p, self.augmenter.names), self.y[step][part]
            )

        return loss

    def meta_loss(self, part=slice(None)):
        return lambda w: self.loss(w, self.meta[0][part], self.meta[1][part])

    def h(self, parts, hold=None):
        """`parts`: sizes of the parts; None: the whole batch, the other way."""

        def cut(make):
            if parts is None:
                return make(slice(None))
            ends = torch.tensor([0, *parts]).cumsum(0).tolist()
            losses = [(b - a, make(slice(a, b))) for a, b in pairwise(ends)]
            return hg.Parts([lambda w, n=n, loss=loss: n / SIZE * loss(w) for n, loss in losses])

        return hg.unrolled(
            [cut(lambda part, i=i: self.train_loss(i, part)) for i in range(len(self.x))],
            cut(self.meta_loss), self.w, self.m, self.theta, self.rules, hold=hold,
        )  # fmt: skip


def along_ones(g):
    return held(g, {k: torch.ones_like(v) for k, v in g.items()})


def assert_same(a, b):
    assert max(float(t.abs().max()) for t in a.theta) > 1e-5, "nothing was tested"
    for x, y in zip(a.theta, b.theta, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-14)
    for k in a.weights:
        torch.testing.assert_close(a.weights[k], b.weights[k], rtol=1e-9, atol=1e-14)
    torch.testing.assert_close(a.train_loss, b.train_loss)
    torch.testing.assert_close(a.meta_loss, b.meta_loss)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("adam", [False, True])
@pytest.mark.parametrize("hold", [None, hg.same_length, along_ones])
def test_parts_have_the_hypergradient_of_the_whole(steps, adam, hold):
    problem = Problem(steps, adam)
    assert_same(problem.h(None, hold), problem.h((4, 3, 3), hold))


def test_parts_equal_finite_differences():
    problem = Problem(2)
    h, epsilon = problem.h((5, 5)), 1e-5
    for p, exact in zip(problem.theta, h.theta, strict=True):
        flat = p.data.view(-1)
        for i in range(min(len(flat), 3)):
            ends = []
            for sign in (1, -1):
                flat[i] += sign * epsilon
                w, m = problem.w, problem.m
                for step, rule in enumerate(problem.rules):
                    w, m = rule(w, m, hg.gradient(problem.train_loss(step)(w), w))
                    w = {k: v.detach().requires_grad_() for k, v in w.items()}
                ends.append(problem.meta_loss()(w).item())
                flat[i] -= sign * epsilon
            difference = (ends[0] - ends[1]) / (2 * epsilon)
            assert float(exact.view(-1)[i]) == pytest.approx(difference, rel=1e-4, abs=1e-9)


def test_the_second_pass_drops_out_what_the_first_one_did():
    problem = Problem(1, dropout=0.5)
    seen = []
    real = problem.train_loss(0)

    def noted(w):
        loss = real(w)
        seen.append(loss.item())
        return loss

    hg.unrolled(
        [hg.Parts([noted])], problem.meta_loss(), problem.w, problem.m, problem.theta,
        problem.rules,
    )  # fmt: skip
    assert len(seen) == 2 and seen[0] == seen[1]
    assert real(problem.w).item() != seen[0]


def test_a_gradient_at_fixed_weights_is_the_sum_over_parts():
    problem = Problem(1)
    whole = problem.train_loss(0)
    parts = hg.Parts([
        lambda w: 0.6 * problem.train_loss(0, slice(0, 6))(w),
        lambda w: 0.4 * problem.train_loss(0, slice(6, 10))(w),
    ])  # fmt: skip
    a, b = (hg.towards(loss, problem.w, problem.theta) for loss in (whole, parts))
    torch.testing.assert_close(a[0], b[0])
    for x, y in zip(a[1], b[1], strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-14)
