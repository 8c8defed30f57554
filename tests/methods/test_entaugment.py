"""EntAugment: scipy's entropy, Pillow's ops and the authors' formulas are the oracles."""

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from scipy import stats
from torch import nn
from torch.nn import functional as F

from autoaug_ray import policy
from autoaug_ray.data import Split
from autoaug_ray.learner import Learner
from autoaug_ray.maths import policies
from autoaug_ray.maths.image_ops import OPS, apply_ops
from autoaug_ray.methods.base import Task
from autoaug_ray.methods.entaugment import EntAugment, level_of, normalised_entropy
from autoaug_ray.settings.training import Training

TASK = Task(1, 6, 6, (10, 10, 10), (0.3,))
CPU = torch.device("cpu")
PLAIN = {"schedule": "constant", "momentum": 0.0, "weight_decay": 0.0}
SIGNED = {"ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def calls(monkeypatch):
    """(op, magnitude) of each call of apply_ops; images pass unchanged."""
    seen = []

    def spy(images, op, magnitude, strength):
        seen.append((op, magnitude))
        return images

    monkeypatch.setattr(policies, "apply_ops", spy)
    return seen


class Lesson:
    """A training of a linear classifier in float64 on images without flips, crops or cutout."""

    def __init__(self, total_steps=60, method=None, **training):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
        self.method = method or EntAugment(flip="none", warm_up=0.0)
        self.state = self.method.start(TASK, 0, CPU)
        settings = Training(lr=0.5, batch_size=8, **training)
        self.learner = Learner(self.model, settings, total_steps=total_steps, noise=seeded())
        self.images = torch.randint(0, 256, (30, 1, 6, 6), dtype=torch.uint8, generator=seeded())
        self.labels = torch.arange(30) % 3

    def step(self, *rows):
        index = torch.tensor(rows)
        self.learner.begin_step()
        batch = Split(self.images[index], self.labels[index], rows=index)
        logs = self.method.step(self.learner, batch, None, self.state)
        self.learner.end_step()
        return logs

    def logits(self, *rows):
        return self.model(self.images[list(rows)].float() / 255).detach()


def oracle(logits):
    """(B,) levels by scipy's entropy and the code's formula."""
    entropy = stats.entropy(torch.softmax(logits.double(), dim=1).numpy(), axis=1)
    magnitude = 1 - entropy / math.log(logits.shape[1])
    return [min(int(30 * m) + 1, 30) for m in magnitude.tolist()]


def test_the_entropy_is_none_without_doubt_and_one_if_nothing_is_known():
    sure, even = torch.tensor([[200.0, -200.0, 0.0]]), torch.zeros(1, 3)
    assert normalised_entropy(sure).item() == 0
    assert normalised_entropy(even).item() == pytest.approx(1)
    half = torch.tensor([[0.0, 0.0, -200.0]])  # log 2 of log 3
    assert normalised_entropy(half).item() == pytest.approx(math.log(2) / math.log(3))
    sure.requires_grad_()
    normalised_entropy(sure).sum().backward()
    assert torch.isfinite(sure.grad).all()


def test_levels_are_those_of_the_code():
    m = [0.0, 0.03, 0.034, 0.5, 0.51, 0.96, 0.967, 1.0]
    assert level_of(torch.tensor(m)).tolist() == [1, 1, 2, 16, 16, 29, 30, 30]
    assert level_of(torch.tensor([-1e-7, 1 + 1e-7])).tolist() == [1, 30]  # rounding


@pytest.mark.parametrize("bins", [30, 31])
def test_the_ranges_are_those_of_the_code(bins):
    top, size = bins - 1, (64, 32)
    table = policies.standard_bins(bins, size)
    for level in range(bins):
        expected = {
            **dict.fromkeys(("ShearX", "ShearY"), level * 0.3 / top),
            "TranslateX": int(level * 10 / top),
            "TranslateY": int(level * 10 / top) * 2,
            "Rotate": int(level * 30 / top),
            "Posterize": 4 - int(level * 4 / top),
            "Solarize": (256 - int(level * 256 / top)) / 255,
            **dict.fromkeys(
                ("Brightness", "Color", "Contrast", "Sharpness"), level * 1.8 / top + 0.1 - 1
            ),
        }
        for name, row in zip(OPS, table, strict=True):
            assert row[level].item() == pytest.approx(expected.get(name, 0), abs=1e-6), name


@pytest.mark.parametrize("level", [1, 15, 30])
def test_ops_at_a_level_are_those_of_pillow(level):
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    picture = Image.fromarray(image)
    mask = ~(2 ** (8 - 4 + int(level * 4 / 30)) - 1)  # Pillow's own refuses 0 bits by now
    expected = {
        "Posterize": picture.point(lambda value: value & mask),
        "Solarize": ImageOps.solarize(picture, 256 - int(level * 256 / 30)),
        "Brightness": ImageEnhance.Brightness(picture).enhance(level * 1.8 / 30 + 0.1),
        "Color": ImageEnhance.Color(picture).enhance(level * 1.8 / 30 + 0.1),
    }
    x = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    bins = policies.standard_bins(31, (8, 8))
    for name, by_pillow in expected.items():
        op = torch.tensor([OPS.index(name)])
        ours = (apply_ops(x, op, bins[op, level]) * 255)[0].permute(1, 2, 0)
        difference = (ours - torch.from_numpy(np.array(by_pillow)).float()).abs().max()
        assert difference <= 1.5, name  # Pillow rounds greys and products
    black = apply_ops(x, torch.tensor([OPS.index("Posterize")]), bins[OPS.index("Posterize"), 30:])
    assert not black.any()


def test_every_image_has_the_level_of_its_own(calls):
    training = Lesson()
    training.state.levels.copy_(torch.arange(30) + 1)
    rows = [29, 3, 17, 0, 11, 20]
    training.step(*rows)
    ((op, magnitude),) = calls
    own = policies.standard_bins(31, (6, 6))[op, torch.tensor(rows) + 1]
    assert torch.equal(magnitude.abs(), own.abs())
    unsigned = torch.tensor([OPS[i] not in SIGNED for i in op])
    assert torch.equal(magnitude[unsigned], own[unsigned]), "factors have no sign"


@pytest.mark.parametrize("accumulate", [1, 3])
def test_what_a_step_predicted_is_remembered_for_its_images_alone(calls, accumulate):
    training = Lesson(accumulate=accumulate)
    training.model[1].weight.data *= 20  # of some images it is sure, of others not
    rows = [4, 9, 1, 28, 7, 2]
    before = training.logits(*rows)
    logs = training.step(*rows)
    assert len(set(oracle(before))) > 2
    assert training.state.levels[rows].tolist() == oracle(before)
    others = [i for i in range(30) if i not in rows]
    assert training.state.levels[others].tolist() == [1] * 24
    entropy = stats.entropy(torch.softmax(before, dim=1).numpy(), axis=1)
    assert logs["magnitude"].item() == pytest.approx(1 - entropy.mean() / math.log(3), abs=1e-5)


def test_of_an_image_twice_in_a_batch_the_lower_level_is_kept():
    state = EntAugment().start(TASK, 0, CPU)
    state.remember(torch.tensor([3, 5, 3, 5]), torch.tensor([0.9, 0.2, 0.4, 0.6]))
    assert state.levels[[3, 5]].tolist() == [13, 7]


@pytest.mark.parametrize("entropy_loss", [False, True])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_classifier_descends_the_loss_that_was_asked_for(calls, entropy_loss, accumulate):
    method = EntAugment(flip="none", entropy_loss=entropy_loss)
    training = Lesson(method=method, accumulate=accumulate, **PLAIN)
    rows = [0, 1, 5, 9]
    weights = [p.detach().clone().requires_grad_() for p in training.model.parameters()]
    logits = F.linear(training.images[rows].flatten(1).float() / 255, *weights)
    loss = F.cross_entropy(logits, training.labels[rows])
    if entropy_loss:
        p = torch.softmax(logits, dim=1)
        loss = loss + (-(p * p.log()).sum(dim=1) / math.log(3)).mean()
    gradients = torch.autograd.grad(loss, weights)
    assert training.step(*rows)["train_loss"].item() == pytest.approx(loss.item(), abs=1e-5)
    for old, g, new in zip(weights, gradients, training.model.parameters(), strict=True):
        torch.testing.assert_close((old.detach() - new.detach()) / 0.5, g, rtol=1e-3, atol=1e-4)


def test_the_warm_up_is_trivialaugment_in_the_same_space(calls):
    images = torch.rand(4000, 1, 32, 32)
    policies.TrivialAugmentWide(num_bins=30)(images, seeded())
    policies.OneOp("standard", 30)(images, seeded())
    (wide_op, wide), (op, ours) = calls
    assert torch.equal(wide_op, op)
    for name, factor in (("ShearX", 0.3 / 0.99), ("ShearY", 0.3 / 0.99)):
        chosen = op == OPS.index(name)
        torch.testing.assert_close(ours[chosen], wide[chosen] * factor)
        assert len(ours[chosen].abs().unique()) == 30


def test_it_lasts_for_its_share_of_the_training(calls):
    method = EntAugment(flip="none", space="torchvision")
    training = Lesson(method=method)  # of 60 steps, 10 / 300 are 2
    training.state.levels.fill_(7)
    warm, levels = [], []
    for _ in range(4):
        training.step(*range(20))
        warm.append(bool(training.state.warm))
        op, magnitude = calls[-1]
        own = policies.magnitude_bins(31, (6, 6))[op, 7].abs()
        levels.append(torch.equal(magnitude.abs(), own))
        training.state.levels.fill_(7)
    assert warm == [True, True, False, False]
    assert levels == [False, False, True, True]


def test_others_get_the_levels_of_the_pool_at_random(calls):
    """A probe and an exported policy do not know which image is which."""
    method = EntAugment(flip="none")
    state = method.start(TASK, 0, CPU)
    state.warm.fill_(False)
    state.levels.copy_(torch.tensor([5] * 20 + [25] * 10))
    exported = policy.Policy(method, TASK, policy.tensors(state.state_dict()))
    exported(torch.rand(6000, 1, 6, 6))
    ((op, magnitude),) = calls
    shears = magnitude[op == OPS.index("ShearX")].abs()
    high = (shears - 0.25).abs() < 1e-6
    assert torch.equal(high, (shears - 0.05).abs() > 1e-6)
    assert high.float().mean() == pytest.approx(1 / 3, abs=0.1)


def test_the_whole_policy_moves_with_the_levels():
    """Delivered strength, by which a report shows a policy, sees them."""
    method = EntAugment(flip="none", space="torchvision")
    state = method.start(TASK, 0, CPU)
    state.warm.fill_(False)
    x = torch.rand(200, 1, 28, 28, generator=seeded())
    moved = []
    for level in (1, 30):
        state.levels.fill_(level)
        moved.append((method.augment(state, x, seeded()) - x).abs().mean())
    assert moved[0] < moved[1]
