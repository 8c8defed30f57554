"""maths/relaxed_policy.py: a second, plain implementation, and finite differences of it."""

from itertools import combinations

import pytest
import torch
from torch import Generator, Tensor

from autoaug_ray.maths import relaxed_policy
from autoaug_ray.maths.gumbel import gumbel
from autoaug_ray.maths.image_ops import OPS, apply_ops
from autoaug_ray.maths.policies import magnitude_bins
from autoaug_ray.maths.relaxed_policy import RelaxedPolicy

PAIRS = tuple(combinations(OPS, 2))
EXACT = ("ShearX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast", "Sharpness")
TWO_WAY = (*EXACT, "ShearY", "TranslateX")
WITHOUT_MAGNITUDE = ("Identity", "AutoContrast", "Equalize", "Invert")


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def policy_of(ops, tau=0.7, seed=1) -> RelaxedPolicy:
    """A policy somewhere in its space."""
    policy = RelaxedPolicy(ops, tau)
    g = seeded(seed)
    for p in policy.parameters():
        p.data = torch.randn(p.shape, generator=g)
    return policy


def plain(theta, at, ops, tau, images: Tensor, seed: int) -> Tensor:
    """The policy in a loop over samples: the parameters `at` decide what is drawn and fires; only
    the relaxed variables and the magnitudes follow `theta`. The policy's gradient must be the
    derivative of this in theta, at theta = at."""
    g = seeded(seed)
    n = len(images)
    noise = gumbel(torch.zeros(n, len(ops)), g)
    steps = []
    for _ in range(len(ops[0])):
        logistic = gumbel(torch.zeros(n), g) - gumbel(torch.zeros(n), g)
        steps.append((logistic, torch.randint(2, (n,), generator=g)))
    bins = magnitude_bins(2, tuple(images.shape[2:])).double()
    out = []
    for i in range(n):
        scores, scores_at = (t["choice"].log_softmax(0) + noise[i] for t in (theta, at))
        s = int(scores_at.argmax())
        x = x_at = images[i : i + 1]
        for k, (logistic, coin) in enumerate(steps):
            o = OPS.index(ops[s][k])
            sign = -1 if coin[i] and ops[s][k] in TWO_WAY else 1

            def applied(t, image, k=k, o=o, s=s, sign=sign):
                low, high = bins[o]
                magnitude = sign * (low + t["magnitude"][s, k].sigmoid() * (high - low))
                return apply_ops(image, torch.tensor([o]), magnitude[None], mode="bilinear")

            y, y_at = applied(theta, x), applied(at, x_at)
            z, z_at = (t["probability"][s, k] + logistic[i] for t in (theta, at))
            weight = (z / tau).sigmoid() - (z_at / tau).sigmoid()
            change = weight * (y_at - x_at)
            x, x_at = (y, y_at) if z_at > 0 else (x, x_at)
            x = x + change
        weight = ((a / tau).softmax(0)[s] for a in (scores, scores_at))
        out.append(x + (next(weight) - next(weight)) * x_at)
    return torch.cat(out)


def test_gradients_are_those_of_finite_differences() -> None:
    ops = tuple(combinations(EXACT, 2))
    policy = policy_of(ops).double()
    images = torch.rand(24, 3, 7, 9, generator=seeded(), dtype=torch.float64) * 0.4 + 0.3
    weights = torch.rand(images.shape, generator=seeded(2), dtype=torch.float64)
    theta = {name: p.detach() for name, p in policy.named_parameters()}
    out = policy(images, seeded(5))
    assert torch.allclose(out, plain(theta, theta, ops, 0.7, images, 5), atol=1e-12)
    gradients = torch.autograd.grad((weights * out).sum(), list(policy.parameters()))
    checked = 0
    for (name, value), got in zip(theta.items(), gradients, strict=True):
        for place in got.flatten().abs().argsort(descending=True)[:8].tolist():
            h = torch.zeros_like(value).flatten()
            h[place] = 1e-6
            up, down = (
                plain({**theta, name: value + d}, theta, ops, 0.7, images, 5)
                for d in (h.view_as(value), -h.view_as(value))
            )
            numeric = float((weights * (up - down)).sum() / 2e-6)
            assert float(got.flatten()[place]) == pytest.approx(numeric, rel=1e-4, abs=1e-6), name
            checked += got.flatten()[place] != 0
    assert checked == 24


def test_the_forward_pass_is_that_of_the_discrete_ops(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last bit, and for the ops without derivatives too."""
    images = torch.rand(200, 3, 8, 8, generator=seeded())
    seen = []

    def spy(x: Tensor, op: Tensor, magnitude: Tensor, **kwargs: str) -> Tensor:
        seen.append((op, magnitude.detach()))
        return apply_ops(x, op, magnitude, **kwargs)

    monkeypatch.setattr(relaxed_policy, "apply_ops", spy)
    policy = policy_of(PAIRS)
    policy.probability.data.fill_(100.0)  # every step fires
    out = policy(images, seeded(3))
    expected = images
    for op, magnitude in seen:
        expected = apply_ops(expected, op, magnitude, mode="bilinear")
    assert len(seen) == 2 and torch.equal(out, expected)
    assert {OPS[i] for i in torch.cat([op for op, _ in seen]).tolist()} == set(OPS)


def test_what_never_fires_changes_nothing_and_images_stay_images() -> None:
    images = torch.rand(300, 1, 8, 8, generator=seeded())
    policy = policy_of(PAIRS)
    out = policy(images, seeded())
    assert out.min() >= 0 and out.max() <= 1 and not torch.equal(out, images)
    policy.probability.data.fill_(-100.0)
    assert torch.equal(policy(images, seeded()), images)


def test_draws_follow_the_probabilities() -> None:
    images = torch.full((20_000, 1, 1, 1), 0.25)
    policy = RelaxedPolicy([["Invert", "Identity"], ["Solarize", "Identity"]], tau=0.5)
    policy.choice.data = torch.tensor([0.9, 0.1]).log()
    policy.probability.data[0] = torch.tensor(0.3).logit()
    policy.magnitude.data.fill_(-100.0)  # Solarize spares what is below 1
    share = (policy(images, seeded()) == 0.75).float().mean()
    assert float(share) == pytest.approx(0.9 * 0.3, abs=0.015)


@pytest.mark.parametrize("name", ["Posterize", "Solarize"])
def test_where_there_is_no_derivative_in_the_magnitude_it_is_one(name: str) -> None:
    images = torch.rand(6, 1, 5, 5, generator=seeded())
    weights = torch.rand(images.shape, generator=seeded(1))
    policy = RelaxedPolicy([[name]], tau=1.0)
    policy.probability.data.fill_(100.0)
    out = policy(images, seeded())
    (got,) = torch.autograd.grad((weights * out).sum(), policy.magnitude)
    assert float(got) == pytest.approx(float(weights.sum()) / 4, rel=1e-5)  # sigmoid'(0) = 1/4


@pytest.mark.parametrize("name", ["Posterize", "AutoContrast", "Equalize"])
def test_what_makes_whole_levels_passes_gradients_on(name: str) -> None:
    images = torch.rand(6, 1, 5, 5, generator=seeded())
    weights = torch.rand(images.shape, generator=seeded(1))
    gradients = []
    for ops in (["Brightness"], ["Brightness", name]):
        policy = RelaxedPolicy([ops], tau=1.0)
        policy.probability.data.fill_(100.0)
        out = policy(images, seeded())
        gradients.append(torch.autograd.grad((weights * out).sum(), policy.magnitude)[0][0, 0])
    assert float(gradients[0]) != 0
    assert torch.allclose(*gradients)


def test_gradients_reach_every_parameter_that_has_an_effect() -> None:
    policy = policy_of(PAIRS, tau=2.0)
    policy.choice.data.zero_()  # each pair is drawn some 30 times, and half of its steps fire
    policy.probability.data.zero_()
    images = torch.rand(3000, 3, 6, 6, generator=seeded())
    weights = torch.rand(images.shape, generator=seeded(1))
    loss = (weights * policy(images, seeded())).sum()
    choice, probability, magnitude = torch.autograd.grad(loss, list(policy.parameters()))
    name = [[ops[k] for k in range(2)] for ops in PAIRS]
    assert bool((choice != 0).all())
    for s, k in ((s, k) for s in range(105) for k in range(2)):
        assert (probability[s, k] != 0) == (name[s][k] != "Identity"), (s, k)
        assert (magnitude[s, k] != 0) == (name[s][k] not in WITHOUT_MAGNITUDE), (s, k)


def test_the_discrete_policy_is_the_likeliest_of_it() -> None:
    policy = policy_of((("Rotate", "Invert"), ("Color", "ShearX"), ("Invert", "Equalize")))
    policy.choice.data = torch.tensor([0.2, 0.5, 0.3]).log()
    found = policy.discrete(2)
    assert found.weights == (0.5, 0.3) and found.num_bins == 2
    assert [[op for op, _, _ in steps] for steps in found.table] == [
        ["Color", "ShearX"], ["Invert", "Equalize"],
    ]  # fmt: skip
    p, mu = (x.detach().sigmoid() for x in (policy.probability, policy.magnitude))
    (_, first, strong), _ = found.table[0]
    assert first == pytest.approx(float(p[1, 0]), abs=1e-3)
    assert strong == pytest.approx(float(mu[1, 0]), abs=1e-3)


def test_gradient_descent_finds_the_op_that_was_planted() -> None:
    """The target is the image turned dark; of 15 ops, one can do that, if often and strongly."""
    policy = RelaxedPolicy([[name] for name in OPS], tau=0.5)
    optimiser = torch.optim.Adam(policy.parameters(), lr=0.1)
    g = seeded()
    for _ in range(60):
        images = torch.rand(64, 1, 6, 6, generator=g) * 0.5 + 0.5
        loss = (policy(images, g) - (1 - images)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    ((best,),) = policy.discrete(1).table
    assert best[0] == "Invert" and best[1] > 0.8
