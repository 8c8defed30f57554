"""The hypergradient against central finite differences in float64, and its variants against it."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from autoaug_ray.bench.hypergradient import finite_difference
from autoaug_ray.maths import hypergradient as hg
from autoaug_ray.maths.augmenter import Augmenter, parameter_names, transform

RULE = hg.SGD(lr=0.3, momentum=0.9, weight_decay=5e-4, nesterov=True)


class Problem:
    """A small net, an augmenter, K training batches and a meta batch; all float64."""

    def __init__(
        self, group="affine+color", steps=1, activation=nn.SiLU, symmetric=True, adam=None
    ):
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), activation(), nn.Flatten(), nn.Linear(144, 3)
        ).double()
        names = parameter_names(group, 3)
        self.augmenter = Augmenter(names, symmetric=symmetric, spread=0.2).double()
        # Away from the clamps of the colour ops, whose kinks no difference quotient survives.
        self.x = [0.4 + 0.1 * torch.rand(8, 3, 8, 8).double() for _ in range(steps)]
        self.y = [torch.randint(3, (8,)) for _ in range(steps)]
        self.z = [0.5 * (2 * torch.rand(8, self.augmenter.noise_size).double() - 1)] * steps
        self.meta = torch.rand(8, 3, 8, 8).double(), torch.randint(3, (8,))
        self.w = dict(self.net.named_parameters())
        self.m = {k: 0.01 * torch.randn_like(v) for k, v in self.w.items()}
        self.rules = [RULE] * steps
        if adam:
            self.m |= {k + hg.SQUARE: 1e-4 * torch.rand_like(v) for k, v in self.w.items()}
            self.rules = [adam(3 + i, self.w) for i in range(steps)]
        self.theta = list(self.augmenter.parameters())

    def loss(self, w, x, y):
        buffers = {k: b.clone() for k, b in self.net.named_buffers()}
        return F.cross_entropy(functional_call(self.net, {**w, **buffers}, (x,)), y)

    def train_losses(self):
        def make(x, y, z):
            return lambda w: self.loss(w, transform(x, self.augmenter(z), self.augmenter.names), y)

        return [make(*batch) for batch in zip(self.x, self.y, self.z, strict=True)]

    def meta_loss(self, w):
        return self.loss(w, *self.meta)

    def objective(self, length=None):
        """L_v after the steps, without any derivative towards theta; `length`: see normalise."""
        w, m = self.w, self.m
        for step, loss in enumerate(self.train_losses()):
            g = dict(zip(w, torch.autograd.grad(loss(w), list(w.values())), strict=True))
            if length is not None:
                norm = torch.cat([v.flatten() for v in g.values()]).norm()
                g = {k: v * length[step] / norm for k, v in g.items()}
            w, m = self.rules[step](w, m, g)
            w = {k: v.detach().requires_grad_() for k, v in w.items()}
        return self.meta_loss(w).item()

    def differences(self, epsilon=1e-6, **kwargs):
        out = []
        for p in self.theta:
            d = torch.zeros_like(p)
            for i in range(min(p.numel(), 6)):
                flat = p.data.view(-1)
                ends = []
                for sign in (1, -1):
                    flat[i] += sign * epsilon
                    ends.append(self.objective(**kwargs))
                    flat[i] -= sign * epsilon
                d.view(-1)[i] = (ends[0] - ends[1]) / (2 * epsilon)
            out.append(d.view(-1)[:6])
        return out

    def exact(self, **kwargs):
        losses = self.train_losses()
        return hg.unrolled(losses, self.meta_loss, self.w, self.m, self.theta, self.rules, **kwargs)


def check(h, differences):
    largest = max(float(a.abs().max()) for a in h.theta)
    assert largest > 1e-5, "nothing was tested"
    for a, b in zip(h.theta, differences, strict=True):
        torch.testing.assert_close(a.view(-1)[:6], b, rtol=1e-4, atol=1e-7 * largest)


@pytest.mark.parametrize("group", ["translation", "affine", "color", "affine+color"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_equals_finite_differences_for_every_augmenter(group, symmetric):
    problem = Problem(group, symmetric=symmetric)
    check(problem.exact(), problem.differences())


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_equals_finite_differences_through_unrolled_steps(steps):
    problem = Problem(steps=steps)
    check(problem.exact(), problem.differences())


def adam(step, w):
    return hg.Adam(lr=0.01, weight_decay=1e-3, step=step)


def adamw(step, w):
    return hg.Adam(lr=0.01, weight_decay=2.0, step=step, decoupled=True)


def grouped(step, w):
    """As with layer-wise rates, and biases that do not decay."""
    rules = [replace(adamw(step, w), lr=0.01 / 2**i, weight_decay=2.0 * (i % 2)) for i in range(3)]
    names = list(w)
    return hg.Grouped(tuple((tuple(names[i::3]), rule) for i, rule in enumerate(rules)))


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("rule", [adam, adamw, grouped])
def test_equals_finite_differences_through_adam(rule, steps):
    problem = Problem(steps=steps, adam=rule)
    check(problem.exact(), problem.differences())


def test_weights_without_a_gradient_do_not_spoil_adam():
    w = {"a": torch.ones(2, requires_grad=True)}
    m = {"a": torch.zeros(2), "a" + hg.SQUARE: torch.zeros(2)}
    g = {"a": torch.tensor([0.0, 1.0], requires_grad=True)}
    moved, _ = hg.Adam(lr=0.1)(w, m, g)
    (d,) = torch.autograd.grad(moved["a"].sum(), g["a"])
    assert torch.isfinite(d).all()


@pytest.mark.parametrize("steps", [1, 2])
def test_normalised_equals_finite_differences_at_fixed_length(steps):
    problem = Problem("affine", steps=steps)
    length = []  # of the gradients where theta is now: held fixed while theta is moved
    w, m = problem.w, problem.m
    for loss in problem.train_losses():
        g = dict(zip(w, torch.autograd.grad(loss(w), list(w.values())), strict=True))
        length.append(torch.cat([v.flatten() for v in g.values()]).norm())
        w, m = RULE(w, m, g)
        w = {k: v.detach().requires_grad_() for k, v in w.items()}
    check(problem.exact(hold=hg.same_length), problem.differences(length=length))


@pytest.mark.parametrize("central, tolerance", [(True, 1e-4), (False, 2e-2)])
def test_finite_difference_converges_with_smooth_activations(central, tolerance):
    problem = Problem()
    (loss,) = problem.train_losses()
    args = loss, problem.meta_loss, problem.w, problem.m, problem.theta, RULE
    a = torch.cat([x.flatten() for x in problem.exact().theta])
    b = torch.cat(
        [x.flatten() for x in finite_difference(*args, epsilon=1e-3, central=central).theta]
    )
    assert torch.dist(a, b) < tolerance * a.norm()


def test_a_step_of_no_length_gives_no_hypergradient():
    problem = Problem()
    rule = hg.SGD(lr=0.0)
    h = hg.unrolled(
        problem.train_losses(), problem.meta_loss, problem.w, problem.m, problem.theta, [rule]
    )
    assert all(float(t.abs().max()) == 0 for t in h.theta)


def test_same_length_keeps_direction_and_value():
    g = {"a": torch.tensor([3.0, 0.0], requires_grad=True), "b": torch.tensor([4.0])}
    out = hg.same_length(g)
    torch.testing.assert_close(out["a"], g["a"])
    # The derivative of the length along g is zero: only turning g changes the result.
    length = torch.cat([out["a"], out["b"]]).square().sum().sqrt()
    (d,) = torch.autograd.grad(length, g["a"])
    assert float(d.abs().max()) < 1e-6


@pytest.mark.parametrize("nesterov", [False, True])
def test_rule_is_torchs_sgd(nesterov):
    torch.manual_seed(0)
    net = nn.Linear(3, 2).double()
    optimiser = torch.optim.SGD(
        net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=nesterov
    )
    rule = hg.SGD(0.1, 0.9, 0.01, nesterov)
    w = {k: v.detach().clone() for k, v in net.named_parameters()}
    m = {k: torch.zeros_like(v) for k, v in w.items()}
    for _ in range(4):
        g = {k: torch.randn_like(v) for k, v in w.items()}
        for k, p in net.named_parameters():
            p.grad = g[k]
        optimiser.step()
        w, m = rule(w, m, g)
        for k, p in net.named_parameters():
            torch.testing.assert_close(w[k], p.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_rule_is_torchs_adam(name):
    torch.manual_seed(0)
    net = nn.Linear(3, 2).double()
    optimiser = getattr(torch.optim, name)(net.parameters(), lr=0.1, weight_decay=0.01)
    w = {k: v.detach().clone() for k, v in net.named_parameters()}
    m = {k + s: torch.zeros_like(v) for k, v in w.items() for s in ("", hg.SQUARE)}
    for step in range(1, 5):
        g = {k: torch.randn_like(v) for k, v in w.items()}
        for k, p in net.named_parameters():
            p.grad = g[k]
        optimiser.step()
        w, m = hg.Adam(0.1, 0.01, step, decoupled=name == "AdamW")(w, m, g)
        for k, p in net.named_parameters():
            torch.testing.assert_close(w[k], p.detach(), rtol=1e-12, atol=1e-12)
