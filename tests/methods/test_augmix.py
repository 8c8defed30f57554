"""AugMix: the formulas of the authors' code, google-research/augmix, and torchvision's ops are the
oracles."""

import pytest
import torch
from scipy import stats
from torch import nn
from torch.nn import functional as F
from torchvision_ops import torchvision_op

from autoaug_ray.data import Split
from autoaug_ray.errors import UserError
from autoaug_ray.learner import Learner
from autoaug_ray.maths import policies
from autoaug_ray.maths.image_ops import OPS
from autoaug_ray.methods.augmix import AugMix, divergence
from autoaug_ray.methods.base import Task
from autoaug_ray.settings.training import Training

TASK = Task(1, 6, 6, (10, 10, 10), (0.3,))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def calls(monkeypatch):
    """(op, magnitude) of each call of apply_ops, which is made all the same."""
    seen = []

    def spy(images, op, magnitude, mode, real=policies.apply_ops):
        seen.append((op, magnitude))
        return real(images, op, magnitude, mode=mode)

    monkeypatch.setattr(policies, "apply_ops", spy)
    return seen


@pytest.mark.parametrize("level", [0.1, 1.7, 3.0, 10.0])
def test_ranges_are_those_of_the_code(level):
    rows = policies._augmix_rows(torch.tensor([level], dtype=torch.float64), (30, 60))
    expected = {
        "Posterize": 4 - int(level * 4 / 10),
        "Rotate": int(level * 30 / 10),
        "Solarize": (256 - int(level * 256 / 10)) / 255,
        "ShearX": level * 0.3 / 10,
        "ShearY": level * 0.3 / 10,
        "TranslateX": int(level * (60 / 3) / 10),
        "TranslateY": int(level * (30 / 3) / 10),
    }
    assert {k: v.item() for k, v in rows.items()} == pytest.approx(expected)


def test_a_mixture_is_that_of_torchvisions_ops_with_the_same_draws(calls):
    n, chains = 120, 2
    smooth = F.interpolate(
        torch.rand(n, 3, 5, 5, generator=seeded(1)), size=(24, 24), mode="bicubic"
    )
    images = (smooth.clamp(0, 1) * 255).byte()
    ours = policies.AugMix(chains=chains, depth=1)(images.float() / 255, seeded())
    noise = seeded()
    weights = torch._sample_dirichlet(torch.ones(n, chains), noise)
    share = torch.rand(n, generator=noise)
    ((op, magnitude),) = calls
    wrong = 0
    for i, image in enumerate(images):
        mixture = torch.zeros(3, 24, 24)
        for chain in range(chains):
            at = chain * n + i
            name, m = OPS[op[at]], magnitude[at].item()
            mixture += weights[i, chain] * torchvision_op(image, name, m, "bilinear").float()
        expected = (1 - share[i]) * image.float() + share[i] * mixture
        wrong += int(((ours[i] * 255 - expected).abs() > 2).sum())
    # torchvision truncates levels, of which Equalize and AutoContrast may make more than two.
    assert wrong < 0.002 * images.numel()


def test_chains_have_one_to_three_of_its_nine_ops(calls):
    x = torch.rand(3000, 1, 8, 8, generator=seeded())
    policies.AugMix()(x, seeded())
    ops = torch.stack([op for op, _ in calls])
    length = (ops != OPS.index("Identity")).sum(0)
    assert stats.chisquare(torch.bincount(length, minlength=4)[1:].tolist()).pvalue > 1e-3
    counts = torch.bincount(ops[0], minlength=len(OPS))
    used = counts[[OPS.index(name) for name in policies.AUGMIX_OPS]]
    assert used.sum() == 9000 and stats.chisquare(used.tolist()).pvalue > 1e-3
    _, magnitude = calls[0]
    shear = magnitude[ops[0] == OPS.index("ShearX")]
    assert (shear > 0).double().mean() == pytest.approx(0.5, abs=0.1)
    assert stats.kstest(shear.abs() / 0.3 * 10, stats.uniform(0.1, 2.9).cdf).pvalue > 1e-3


def published_loss(clean, first, second, labels):
    """The loss of cifar.py, by torch's KL divergence."""
    p = [F.softmax(logits, dim=1) for logits in (clean, first, second)]
    mixture = torch.clamp(sum(p) / 3.0, 1e-7, 1).log()
    return (
        F.cross_entropy(clean, labels)
        + 12 * sum(F.kl_div(mixture, q, reduction="batchmean") for q in p) / 3.0
    )


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_descends_the_published_loss(accumulate):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    model[1].weight.data *= 5
    weights = [p.detach().clone().requires_grad_() for p in model.parameters()]
    plain = Training(
        lr=0.1, schedule="constant", momentum=0, weight_decay=0, batch_size=6, accumulate=accumulate
    )
    learner = Learner(model, plain, total_steps=9, noise=seeded())
    method = AugMix(flip="none")
    batch = Split(torch.randint(0, 256, (6, 1, 6, 6), dtype=torch.uint8), torch.arange(6) % 3)
    learner.begin_step()
    logs = method.step(learner, batch, None, method.start(TASK, 0, torch.device("cpu")))
    noise, x = seeded(), batch.images.float() / 255
    views = [x, *(policies.AugMix()(x, noise) for _ in range(2))]
    loss = published_loss(*(F.linear(v.flatten(1), *weights) for v in views), batch.labels)
    gradients = torch.autograd.grad(loss, weights)
    torch.testing.assert_close(logs["train_loss"], loss.detach())
    assert logs["divergence"] > 1e-3
    for old, g, new in zip(weights, gradients, model.parameters(), strict=True):
        torch.testing.assert_close(old - 0.1 * g, new)


def test_the_divergence_of_sure_predictions_is_finite_and_at_most_log_views():
    no_view_sees_it = torch.full((1, 3, 1), -300.0)
    logits = torch.cat([300 * torch.eye(3)[None], no_view_sees_it], dim=2).requires_grad_()
    value = divergence(logits)
    assert value.item() == pytest.approx(torch.tensor(3.0).log().item())
    (slope,) = torch.autograd.grad(value.sum(), logits)
    assert torch.isfinite(slope).all()


def test_parts_that_would_separate_the_views_are_refused(tiny):
    with pytest.raises(UserError, match="accumulate that divides train.batch_size, 32, got 3"):
        tiny({"augmix": {}}, train={"epochs": 1, "batch_size": 32, "accumulate": 3})
