"""Learning rates, groups of weights and label smoothing: torch's schedulers are the oracle."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from autoaug_ray import models
from autoaug_ray.data import Split
from autoaug_ray.errors import UserError
from autoaug_ray.learner import Learner
from autoaug_ray.maths import saflex
from autoaug_ray.methods import method_class
from autoaug_ray.methods.base import Task
from autoaug_ray.methods.learned_ops import agreement
from autoaug_ray.recipe import groups_of, rate
from autoaug_ray.settings.classifier import Classifier
from autoaug_ray.settings.training import Training

CPU = torch.device("cpu")


@pytest.mark.parametrize("kind", ["constant", "cosine", "onecycle", "step"])
def test_schedules_stay_within_the_peak_and_end_low(kind):
    values = [rate(Training(schedule=kind), (i + 0.5) / 100) for i in range(100)]
    assert max(values) <= 1 and min(values) >= 0
    if kind != "constant":
        assert values[-1] < 0.02
    if kind == "step":
        assert sorted({round(v, 4) for v in values}) == [0.008, 0.04, 0.2, 1.0]


@pytest.mark.parametrize("warmup", [0.05, 0.25])
def test_warm_up_and_cosine_are_torchs(warmup):
    """Which has rates at the ends of steps where we have them in the middle: at every half step."""
    steps = 40
    halves, rising = 2 * steps, round(2 * steps * warmup)
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    up = LinearLR(optimiser, start_factor=1e-15, total_iters=rising)
    down = CosineAnnealingLR(optimiser, T_max=halves - rising)
    scheduler = SequentialLR(optimiser, [up, down], milestones=[rising])
    theirs = []
    for _ in range(halves):
        theirs.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        scheduler.step()
    training = Training(schedule="cosine", warmup=warmup)
    ours = [rate(training, (i + 0.5) / steps) for i in range(steps)]
    assert ours == pytest.approx(theirs[1::2], abs=1e-9)


@pytest.mark.parametrize(
    "kind, more", [("onecycle", ", which rises over a quarter"), ("step", ""), ("constant", "")]
)
def test_warm_up_is_for_the_cosine(kind, more):
    with pytest.raises(ValueError, match=f"warmup: 0.1 needs .* got schedule: {kind}{more}"):
        Training(schedule=kind, warmup=0.1)


def test_layer_wise_rates_need_layers(monkeypatch):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, images):
            return self.last(self.first(images.flatten(1)))

    with pytest.raises(UserError, match="train.lr_decay needs a network that has blocks"):
        groups_of(Two(), Training(lr_decay=0.5))
    with pytest.raises(UserError, match="train.lr_decay needs a network that has blocks"):
        monkeypatch.setitem(models.CLASSIFIERS, "cnn", lambda *sizes: Two())
        models.check(Classifier(), 2, (1, 2, 2), layer_wise=True)


def test_an_average_is_shorter_than_the_training():
    training = Training(epochs=10, batch_size=32, ema=0.99)
    training.check(320)
    with pytest.raises(UserError, match="ema: 0.99 averages over some 100 steps, .* 90; 0.9 "):
        training.check(319)


def test_layer_wise_rates_need_a_backbone_that_learns(tiny):
    model = {"name": "timm:resnet18", "freeze_backbone": True}
    with pytest.raises(UserError, match=r"lr_decay: 0.5 is .* with freeze_backbone one alone"):
        tiny({}, model=model, train={"lr_decay": 0.5})


@pytest.mark.parametrize("setting", [{"lr_decay": 0.5}, {"weight_decay_on": "matrices"}])
def test_the_released_look_ahead_has_one_rule(tiny, setting):
    name = next(iter(setting))
    with pytest.raises(UserError, match=f"protocol: release needs train.{name}: "):
        tiny({"bilevel": {"protocol": "release"}}, train={"epochs": 1, **setting})


# --- label smoothing ------------------------------------------------------------------------------

STEPS = {
    "none": {},
    "randaugment": {},
    "augmix": {},
    "entaugment": {"entropy_loss": True},
    "stn": {},
    "mixup": {},
    "learned_ops": {"every": 1},
    "bilevel exact": {"estimator": "exact", "every": 1},
    "bilevel unrolled": {"estimator": "exact", "unroll": 2, "every": 1},
    "bilevel alignment": {"estimator": "alignment", "every": 1},
    "bilevel train_loss": {"learn": "train_loss"},
    "dada": {},
    "saflex": {"prior": 1000, "temperature": 0},
}


@pytest.mark.parametrize(
    "case, accumulate",
    [(case, parts) for case in STEPS for parts in (1, 2) if (case, parts) != ("saflex", 2)],
)
def test_training_losses_are_smoothed_and_meta_losses_are_not(case, accumulate, monkeypatch):
    """Train images are of class 0 and meta images of class 1."""
    seen = []

    def spy(logits, target, *args, real=F.cross_entropy, **kwargs):
        if target.is_floating_point():  # SAFLEX's own targets
            seen.extend((0, round(2 * share, 5)) for share in target.min(1).values.tolist())
        else:
            seen.extend((label, kwargs.get("label_smoothing", 0.0)) for label in target.tolist())
        return real(logits, target, *args, **kwargs)

    monkeypatch.setattr(F, "cross_entropy", spy)
    monkeypatch.setattr(saflex, "weights", lambda a, y: torch.ones(len(a)))
    method = method_class(case.partition(" ")[0])(**STEPS[case])
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    training = Training(batch_size=8, label_smoothing=0.25, accumulate=accumulate)
    noise = torch.Generator().manual_seed(0)
    learner = Learner(model, training, total_steps=10, noise=noise)

    def images(label):
        pixels = torch.randint(256, (8, 1, 8, 8), dtype=torch.uint8, generator=noise)
        rows = torch.arange(8)
        return Split(pixels, torch.full((8,), label), rows=rows)

    state = method.start(Task(1, 8, 8, (8, 8), (0.5,)), 0, CPU)
    learner.begin_step()
    method.step(learner, images(0), lambda n: images(1), state)
    meta = {(1, 0.0)} if method.uses_meta and case != "bilevel train_loss" else set()
    assert set(seen) == {(0, 0.25)} | meta


def test_the_agreement_of_smoothed_samples_is_their_derivative():
    torch.manual_seed(0)
    logits, motion = torch.randn(2, 6, 3, dtype=torch.float64)
    labels, eps = torch.arange(6) % 3, 1e-4

    def loss(sign):
        moved = logits + sign * eps * motion
        return F.cross_entropy(moved, labels, reduction="none", label_smoothing=0.3)

    found = agreement(logits - eps * motion, logits + eps * motion, labels, "inner", 0.3)
    torch.testing.assert_close(found, (loss(1) - loss(-1)) / 2, rtol=1e-6, atol=1e-12)
