"""Mixup, CutMix and timm's recipe: torchvision, Pillow, scipy and timm's formulas are oracles."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from scipy import stats
from torch import nn
from torch.nn import functional as F
from torchvision.transforms import v2

from autoaug_ray import policy, train
from autoaug_ray.data import Split
from autoaug_ray.learner import Learner
from autoaug_ray.maths import mixing, policies
from autoaug_ray.maths.image_ops import OPS
from autoaug_ray.methods import method_class
from autoaug_ray.methods.base import Task
from autoaug_ray.settings.training import Training

CPU = torch.device("cpu")
TASK = Task(1, 6, 6, (10, 10, 10), (0.3,))
SIZE = (20, 29)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def one(partner, kept, box=(0, 0, 0, 0)):
    n = len(partner)
    return mixing.Drawn(partner, torch.full((n,), kept), torch.tensor([box]).expand(n, 4))


def soft(labels, drawn, own):
    first, second = (F.one_hot(y, 4).float() for y in (labels, labels[drawn.partner]))
    return own[:, None] * first + (1 - own[:, None]) * second


def chances(mixed=1.0, cutmix=0.0, mixup_alpha=1.0, cutmix_alpha=1.0):
    return mixing.Chances(mixed, cutmix, mixup_alpha, cutmix_alpha)


# --- images and labels ----------------------------------------------------------------------------


def test_mixup_is_torchvisions_by_pixels_and_labels():
    images, labels = torch.rand(8, 3, *SIZE), torch.arange(8) % 4
    drawn = one(torch.arange(8).roll(1), 0.3)
    x, own = mixing.mix(images, drawn)
    theirs = v2.MixUp(num_classes=4)
    theirs._dist = SimpleNamespace(sample=lambda _: 0.3)
    pixels, targets = theirs(images, labels)
    torch.testing.assert_close(x, pixels)
    torch.testing.assert_close(soft(labels, drawn, own), targets)


def test_cutmix_is_torchvisions_by_pixels_and_labels(monkeypatch):
    """With the share and the centre that were drawn here, for each image of a batch."""
    n = 60
    images, labels = torch.rand(n, 3, *SIZE, generator=seeded(1)), torch.arange(n) % 4
    drawn = mixing.draw(n, SIZE, chances(cutmix=1.0), seeded())
    x, own = mixing.mix(images, drawn)
    y = soft(labels, drawn, own)
    noise = seeded()
    torch.randperm(n, generator=noise)
    torch.rand(2, n, generator=noise)
    kept = torch._sample_dirichlet(torch.ones(n, 2).double(), noise)[:, 0].float().tolist()
    rows, columns = (torch.randint(side, (n,), generator=noise) for side in SIZE)
    boxes = set()
    for i, j in enumerate(drawn.partner.tolist()):
        theirs = v2.CutMix(num_classes=4)
        theirs._dist = SimpleNamespace(sample=lambda _, i=i: kept[i])
        centre = iter((columns[i : i + 1], rows[i : i + 1]))
        with monkeypatch.context() as m:
            m.setattr(torch, "randint", lambda *_, size, centre=centre: next(centre))
            pixels, targets = theirs(images[[i, j]], labels[[i, j]])
        assert torch.equal(x[i], pixels[0])
        torch.testing.assert_close(y[i], targets[0])
        boxes.add(targets[0].max().item())
    assert len(boxes) > n / 3


@pytest.mark.parametrize("alpha", [0.05, 0.2, 1.0])
def test_shares_are_beta(alpha):
    drawn = mixing.draw(4000, SIZE, chances(mixup_alpha=alpha), seeded())
    # In single precision, in which a fifth of those with alpha 0.05 are 1.
    theirs = stats.beta(alpha, alpha).rvs(4000, random_state=0).astype(np.float32)
    assert stats.ks_2samp(drawn.kept, theirs).pvalue > 1e-3
    assert not drawn.box[:, 2:].any()
    assert sorted(drawn.partner.tolist()) == list(range(4000))


def test_boxes_are_torchvisions_in_distribution():
    drawn = mixing.draw(2000, SIZE, chances(cutmix=1.0), seeded())
    _, own = mixing.mix(torch.zeros(2000, 1, *SIZE), drawn)
    theirs = v2.CutMix(num_classes=4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        image = [torch.empty(1, *SIZE)]
        lam = [theirs.make_params(image)["lam_adjusted"] for _ in range(2000)]
    assert stats.ks_2samp(own, lam).pvalue > 1e-3


def test_each_image_or_each_batch_draws_by_turns():
    turns = chances(mixed=0.6, cutmix=0.25)
    drawn = mixing.draw(8000, SIZE, turns, seeded())
    cut = drawn.box[:, 2] > 0
    mixed_up = drawn.kept < 1
    assert not (cut & mixed_up).any()
    assert mixed_up.double().mean() == pytest.approx(0.45, abs=0.03)
    # Some boxes are too small to be one pixel high.
    assert cut.double().mean() == pytest.approx(0.15, abs=0.03)
    kinds = set()
    for seed in range(40):
        partner, kept, box = mixing.draw(8, SIZE, turns, seeded(seed), each=False)
        assert len(kept.unique()) == 1 and len(box.unique(dim=0)) == 1
        assert sorted(partner.tolist()) == list(range(8))
        kinds.add((bool(kept[0] < 1), bool(box[0, 2])))
    assert kinds == {(True, False), (False, True), (False, False)}


# --- the loss -------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("name", ["mixup", "cutmix", "mixup_cutmix", "timm_recipe"])
def test_a_step_descends_the_cross_entropy_to_the_mixed_labels(name, accumulate, monkeypatch):
    """Smoothed and then mixed, as timm's `mixup_target`: 1 - s + s / classes, and s / classes."""
    smoothing, n = 0.2, 6
    method = method_class(name)(label_smoothing=smoothing)
    seen = {}

    def spy(images, drawn, real=mixing.mix):
        out = real(images, drawn)
        seen["x"], seen["own"], seen["partner"] = *out, drawn.partner
        return out

    monkeypatch.setattr(mixing, "mix", spy)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    before = {k: p.detach().clone() for k, p in model.named_parameters()}
    plain = Training(
        lr=0.5, schedule="constant", momentum=0, weight_decay=0, batch_size=n, accumulate=accumulate
    )
    plain = method.training("final", plain)
    learner = Learner(model, plain, total_steps=9, noise=seeded())
    batch = Split(torch.randint(0, 256, (n, 1, 6, 6), dtype=torch.uint8), torch.arange(n) % 3)
    learner.begin_step()
    logs = method.step(learner, batch, None, method.start(TASK, 0, CPU))
    hard = torch.full((n, 3), smoothing / 3)
    hard[torch.arange(n), batch.labels] = 1 - smoothing + smoothing / 3
    own = seen["own"][:, None]
    targets = own * hard + (1 - own) * hard[seen["partner"]]
    weights = {k: p.requires_grad_() for k, p in before.items()}
    logits = torch.func.functional_call(model, weights, (seen["x"],))
    loss = -(targets * logits.log_softmax(1)).sum(1).mean()
    gradients = torch.autograd.grad(loss, list(weights.values()))
    torch.testing.assert_close(logs["train_loss"], loss.detach())
    assert logs["mixed_in"] == pytest.approx(1 - seen["own"].mean().item())
    for old, g, new in zip(weights.values(), gradients, model.parameters(), strict=True):
        torch.testing.assert_close(old - 0.5 * g, new)


def test_a_row_smooths_in_the_place_of_the_study_and_not_on_top_of_it():
    study = Training(label_smoothing=0.2)
    used = {
        name: method_class(name)(**own).training("final", study).label_smoothing
        for name, own in (("mixup", {}), ("cutmix", {"label_smoothing": 0}), ("timm_recipe", {}))
    }
    assert used == {"mixup": 0.2, "cutmix": 0.0, "timm_recipe": 0.1}


# --- timm's RandAugment ---------------------------------------------------------------------------


@pytest.mark.parametrize("m", [0.0, 3.3, 8.76, 10.0])
def test_ranges_are_those_of_timm(m):
    """`LEVEL_TO_ARG` of timm 1.0.31 for `inc1`, a factor of 1 taken off, thresholds of 255."""
    rows = policies._timm_rows(torch.tensor([m / 10]), (32, 64))
    expected = {
        **dict.fromkeys(("ShearX", "ShearY"), m / 10 * 0.3),
        "TranslateX": m / 10 * 0.45 * 64,
        "TranslateY": m / 10 * 0.45 * 32,
        "Rotate": m / 10 * 30,
        "Posterize": 4 - int(m / 10 * 4),
        "Solarize": (256 - min(256, int(m / 10 * 256))) / 255,
        **dict.fromkeys(("Brightness", "Color", "Contrast", "Sharpness"), m / 10 * 0.9),
    }
    assert {k: v.item() for k, v in rows.items()} == pytest.approx(expected, abs=1e-5)


def test_two_of_its_15_ops_are_drawn_each_by_even_chance(monkeypatch):
    calls = []

    def spy(images, op, magnitude, strength, mode):
        calls.append((op, magnitude))
        return images

    monkeypatch.setattr(policies, "apply_ops", spy)
    n = 15_000
    image = np.random.default_rng(0).integers(0, 256, (3, 4, 4), dtype=np.uint8)
    x = torch.from_numpy(image).float() / 255
    out = policies.TimmRandAugment(9)(x.expand(n, -1, -1, -1), seeded())
    assert len(calls) == 2
    for op, magnitude in calls:
        counts = torch.bincount(op, minlength=len(OPS)).tolist()
        assert stats.chisquare(counts, [8000, *[500] * 14]).pvalue > 1e-3
        angle = magnitude[op == OPS.index("Rotate")]
        assert (angle > 0).double().mean() == pytest.approx(0.5, abs=0.1)
        below = angle.abs()[angle.abs() < 30]  # of 10, at which all above is cut
        cut = stats.truncnorm(-18, 2, loc=27, scale=1.5)
        assert stats.kstest(below, cut.cdf).pvalue > 1e-3
    changed = (out != x).flatten(1).any(1)
    assert changed.double().mean() == pytest.approx(1 - (1 - 1 / 30) ** 2, abs=0.01)


def test_what_is_added_is_added_by_pillow_below_half(monkeypatch):
    """timm's `solarize_add`, a table of 256 levels."""
    monkeypatch.setattr(policies, "TIMM_OPS", ("SolarizeAdd",))
    monkeypatch.setattr(torch, "randn", lambda *_, **__: torch.zeros(64))
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.zeros(64))  # both fire
    image = np.arange(256, dtype=np.uint8).reshape(16, 16)
    x = torch.from_numpy(image)[None, None].float() / 255
    out = policies.TimmRandAugment(5)(x.expand(64, -1, -1, -1), seeded())
    table = [min(255, i + 55) if i < 128 else i for i in range(256)]
    twice = Image.fromarray(image).point(table).point(table)
    assert torch.equal((out[0, 0] * 255).round().byte(), torch.from_numpy(np.array(twice)))


# --- what is exported -----------------------------------------------------------------------------


def test_an_exported_policy_says_that_it_does_not_mix(final_run, tmp_path):
    run = final_run("mixup", {"then": {"name": "predefined", "flip": "none", "translate": 0}})
    saved = [epoch.snapshot() for epoch in train.run(run)][-1]
    policy.export(tmp_path, run, policy.task_of(saved["shape"]), saved["state"], [], {})
    with pytest.warns(UserWarning, match="of mixup, lacks the mixing of images"):
        loaded = policy.load_policy(tmp_path / "policy.pt")
    images = torch.rand(4, 1, 28, 28)
    assert torch.equal(loaded(images), images)
    assert "mixing" in yaml.safe_load((tmp_path / "policy.yaml").read_text())["left_out"]
