import pytest
import torch

from autoaug_ray.maths.gumbel import discrete, gumbel, likelihood_ratio, relaxed

ALPHA = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)


def draws(n, seed=0):
    log_alpha = ALPHA.log().expand(n, 3)
    return log_alpha, gumbel(log_alpha, torch.Generator().manual_seed(seed))


def test_the_noise_has_the_gumbel_distribution():
    _, g = draws(200_000)
    assert torch.isfinite(g).all()
    assert float(g.mean()) == pytest.approx(0.57722, abs=0.01)  # Euler's constant
    assert float(g.var()) == pytest.approx(torch.pi**2 / 6, abs=0.03)


def test_the_discrete_form_samples_from_alpha():
    index = discrete(*draws(200_000))
    frequency = torch.bincount(index, minlength=3) / len(index)
    assert torch.allclose(frequency.double(), ALPHA, atol=0.005)


def test_the_relaxed_form_adds_up_to_one_and_ends_in_the_discrete_one():
    log_alpha, g = draws(1000)
    z = relaxed(log_alpha, g, tau=1.0)
    assert torch.allclose(z.sum(1), torch.ones(1000, dtype=z.dtype))
    assert float(z.max(1).values.mean()) < 0.9
    cold = relaxed(log_alpha, g, tau=1e-3)
    assert torch.equal(cold.argmax(1), discrete(log_alpha, g))
    assert float(cold.max(1).values.mean()) > 0.99


def test_the_relaxed_form_has_the_gradient_of_its_definition():
    g = draws(5)[1]
    logits = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: relaxed(x.log_softmax(1), g, 0.7), logits)


def test_the_likelihood_ratio_is_one_and_has_the_derivative_of_the_expectation():
    losses = torch.tensor([1.0, 4.0, -2.0], dtype=torch.float64)
    logits = ALPHA.log().clone().requires_grad_()
    expected = torch.autograd.grad((logits.softmax(0) * losses).sum(), logits)[0]
    n = 400_000
    log_alpha = logits.log_softmax(0).expand(n, 3)
    index = discrete(log_alpha.detach(), gumbel(log_alpha, torch.Generator().manual_seed(1)))
    ratio = likelihood_ratio(log_alpha, index)
    assert torch.equal(ratio, torch.ones_like(ratio))
    estimate = torch.autograd.grad((ratio * losses[index]).mean(), logits)[0]
    assert torch.allclose(estimate, expected, atol=0.01)
