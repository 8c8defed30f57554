"""The hypergradient by alignment against double backward, and against its definition."""

import copy

import pytest
import torch
from test_hypergradient import Problem, adam, adamw

from autoaug_ray.maths import alignment
from autoaug_ray.maths import hypergradient as hg


def random_like(tensors, seed):
    noise = torch.Generator().manual_seed(seed)
    return {k: torch.randn(v.shape, generator=noise, dtype=v.dtype) for k, v in tensors.items()}


def first_order(problem, r=None):
    """d<d, g>/dtheta by double backward, with v = dL_v/dw at w."""
    w, (rule,), (train_loss,) = problem.w, problem.rules, problem.train_losses()
    v = hg.gradient(problem.meta_loss(w), w)
    g = hg.gradient(train_loss(w), w, create_graph=True)
    moved, _ = rule(w, problem.m, alignment.held(g, r) if r else g)
    return torch.autograd.grad(list(moved.values()), problem.theta, list(v.values()))


def by_difference(problem, r=None, distance=1e-6):
    w, (rule,), (train_loss,) = problem.w, problem.rules, problem.train_losses()
    v, g = hg.gradient(problem.meta_loss(w), w), hg.gradient(train_loss(w), w)
    d = alignment.pulled_back(rule, w, problem.m, g, v)
    d = alignment.across(d, r) if r else d
    there, eps = alignment.shifted(w, d, distance)
    ends = [hg.towards(train_loss, at, problem.theta)[1] for at in (there, w)]
    return [(a - b) / eps for a, b in zip(*ends, strict=True)]


@pytest.mark.parametrize("rule", [None, adam, adamw])
@pytest.mark.parametrize("reference", [False, True])
def test_the_difference_is_the_second_derivative(rule, reference):
    problem = Problem("affine+color", adam=rule)
    r = random_like(problem.w, 1) if reference else None
    for a, b in zip(by_difference(problem, r), first_order(problem, r), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6 * float(b.abs().max()))


def test_it_is_the_exact_hypergradient_for_a_small_learning_rate():
    problem = Problem("affine")
    problem.m = {k: torch.zeros_like(v) for k, v in problem.m.items()}
    problem.rules = [hg.SGD(1e-6)]
    for a, b in zip(by_difference(problem), problem.exact().theta, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5 * float(b.abs().max()))


def test_held_gradients_keep_their_values_and_move_across_the_reference_only():
    torch.manual_seed(0)
    t = torch.tensor(0.3, requires_grad=True)
    at, r = {"a": torch.randn(3), "b": torch.randn(2)}, {"a": torch.randn(3), "b": torch.randn(2)}
    g = {k: (1 + t) * v + t**2 * torch.ones_like(v) for k, v in at.items()}
    out = alignment.held(g, r)
    for k in g:
        torch.testing.assert_close(out[k], g[k])
    (along,) = torch.autograd.grad(alignment.inner(out, r), t, retain_graph=True)
    assert float(along) == pytest.approx(0, abs=1e-5)
    d = {"a": torch.randn(3), "b": torch.randn(2)}
    (moved,) = torch.autograd.grad(alignment.inner(out, d), t, retain_graph=True)
    (adjoint,) = torch.autograd.grad(alignment.inner(g, alignment.across(d, r)), t)
    assert float(moved) == pytest.approx(float(adjoint), rel=1e-5)


def test_a_batch_held_along_itself_is_one_of_the_same_length():
    """To first order: both leave the length of g alone, at its value."""
    torch.manual_seed(0)
    t = torch.tensor(0.0, requires_grad=True)
    at, to, d = torch.randn(3, 5)
    g = {"a": at + t * to}
    held = alignment.held(g, {"a": at})["a"]
    (a,) = torch.autograd.grad((held * d).sum(), t, retain_graph=True)
    (b,) = torch.autograd.grad((hg.same_length(g)["a"] * d).sum(), t)
    assert float(a) == pytest.approx(float(b), rel=1e-5)


def test_a_direction_of_no_length_moves_nothing():
    w = {"a": torch.ones(3)}
    there, eps = alignment.shifted(w, {"a": torch.zeros(3)})
    assert torch.equal(there["a"], w["a"]) and torch.isinf(eps)
    assert torch.equal(alignment.across(w, {"a": torch.zeros(3)})["a"], w["a"])


def test_an_average_is_a_plain_mean_at_first_and_forgets_later():
    average = alignment.Average(memory=4)
    for i in range(3):
        average.add({"a": torch.tensor([float(i)])})
    assert average.values["a"].item() == pytest.approx(1.0)
    for i in range(3, 40):
        average.add({"a": torch.tensor([float(i)])})
    # A ramp is followed memory - 1 steps behind.
    assert average.values["a"].item() == pytest.approx(39 - 3, abs=1e-3)


def test_values_that_stand_for_many_steps_replace_what_was_there():
    average = alignment.Average(memory=4)
    average.add({"a": torch.tensor([1.0])})
    average.add({"a": torch.tensor([5.0])}, steps=8)
    assert average.values["a"].item() == 5.0


def test_an_average_goes_on_from_its_state():
    one, other = alignment.Average(4), alignment.Average(4)
    one.add({"a": torch.ones(2)})
    other.load_state_dict(copy.deepcopy(one.state_dict()), torch.device("cpu"))
    for average in (one, other):
        average.add({"a": torch.zeros(2)})
    assert torch.equal(one.values["a"], other.values["a"])
