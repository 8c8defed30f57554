"""The stage that methods share, flip, crop and cutout: torchvision's recipe is the oracle."""

import io

import look_ahead
import numpy as np
import pytest
import torch
from rich.console import Console
from scipy import stats
from torch.nn import functional
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F
from torchvision_ops import torchvision_op

from autoaug_ray import data, policy, train
from autoaug_ray.commands import run as command
from autoaug_ray.data import Split
from autoaug_ray.errors import UserError
from autoaug_ray.learner import Learner
from autoaug_ray.maths import image_ops, policies
from autoaug_ray.maths.image_ops import OPS
from autoaug_ray.maths.strength import Strength
from autoaug_ray.methods import METHODS, bilevel, method_class
from autoaug_ray.methods.base import Task
from autoaug_ray.methods.stage import Staged
from autoaug_ray.settings.training import Training

CPU = torch.device("cpu")
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
TASK = Task(3, 32, 32, (4,) * 10, MEAN)
COLOUR = torch.tensor(MEAN)[:, None, None]
STAGED = [name for name in METHODS if issubclass(method_class(name), Staged)]
RECIPE = {"crop": 4, "cutout": 16}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def photograph(n=1, side=32):
    """(n, 3, side, side) uint8, smooth as photographs are."""
    coarse = torch.rand(n, 3, 5, 5, generator=seeded())
    smooth = functional.interpolate(coarse, size=(side, side), mode="bicubic").clamp(0, 1)
    return (smooth * 255).to(torch.uint8)


def made(name, **hyperparameters):
    method = method_class(name)(**hyperparameters)
    return method, method.start(TASK, 0, CPU)


def augmented(name, images, seed=0, **hyperparameters):
    method, state = made(name, **hyperparameters)
    with torch.no_grad():
        return method.augment(state, images, seeded(seed))


def test_the_stage_is_that_of_all_methods_that_augment_by_themselves():
    on_others = {"replay", "mix", "autogenda", "saflex", "mixup", "cutmix", "mixup_cutmix"}
    assert set(METHODS) - set(STAGED) == {"none", *on_others}


# --- against torchvision's recipe -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "hyperparameters", "levels", "share"),
    [
        ("predefined", {}, 0, 0),
        # Levels are truncated by torchvision (test_image_ops), and ties of a rotation are broken by
        # rounding; a second op makes more of both.
        ("randaugment", {"num_ops": 1}, 2, 0.002),
        ("autoaugment", {}, 3, 0.01),
    ],
)
def test_the_recipe_is_torchvisions_pixel_for_pixel(
    name, hyperparameters, levels, share, monkeypatch
):
    """RandomCrop(32, padding=4), RandomHorizontalFlip, policy, ToTensor, Normalize, Cutout(16), in
    this order and with the draws that were made here."""
    ops, holes = [], []
    real_ops, real_cutout = policies.apply_ops, image_ops.cutout

    def apply_ops(images, op, magnitude, strength):
        ops.append((op.tolist(), magnitude.tolist()))
        return real_ops(images, op, magnitude, strength)

    def cutout(images, row, column, side, fill):
        holes.extend(zip(row.tolist(), column.tolist(), strict=True))
        return real_cutout(images, row, column, side, fill)

    monkeypatch.setattr(policies, "apply_ops", apply_ops)
    monkeypatch.setattr(image_ops, "cutout", cutout)
    n = 300
    images = photograph(n)
    ours = augmented(name, images.float() / 255, **RECIPE, **hyperparameters)
    noise = seeded()
    mirrored = (torch.rand(n, generator=noise) < 0.5).tolist()
    top, left = torch.randint(9, (2, n), generator=noise).tolist()
    wrong = 0
    for i, image in enumerate(images):
        # There the crop comes first: a mirrored image shows the other side of the frame.
        x = F.crop(F.pad(image, [4, 4]), top[i], 8 - left[i] if mirrored[i] else left[i], 32, 32)
        x = F.horizontal_flip(x) if mirrored[i] else x
        for op, magnitude in ops:
            x = torchvision_op(x, OPS[op[i]], magnitude[i])
        x = F.normalize(x.float() / 255, MEAN, STD)
        row, column = holes[i]
        x[:, max(row - 8, 0) : row + 8, max(column - 8, 0) : column + 8] = 0
        error = (F.normalize(ours[i], MEAN, STD) - x).abs() * torch.tensor(STD)[:, None, None]
        wrong += int((error * 255 > levels + 1e-3).sum())
    assert wrong <= share * images.numel()


@pytest.mark.parametrize("name", ["randaugment", "autoaugment"])
def test_the_recipe_is_torchvisions_in_distribution(name):
    """With its own draws: means over blocks of pixels, within five standard errors."""
    n, image = 1500, photograph()[0]
    theirs_policy = v2.RandAugment() if name == "randaugment" else v2.AutoAugment()
    if name == "autoaugment":
        theirs_policy = v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)
    recipe = v2.Compose(
        [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip(), theirs_policy,
         v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    )  # fmt: skip
    rng = np.random.default_rng(0)

    def reference():
        out = recipe(image)
        row, column = rng.integers(32, size=2)
        out[:, max(row - 8, 0) : row + 8, max(column - 8, 0) : column + 8] = 0
        return out

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = torch.stack([reference() for _ in range(n)])
    whole = image.expand(n, -1, -1, -1).float() / 255
    ours = F.normalize(augmented(name, whole, **RECIPE), MEAN, STD)
    for moment in (1, 2):
        a, b = (functional.avg_pool2d(x**moment, 8).flatten(1) for x in (ours, theirs))
        z = (a.mean(0) - b.mean(0)) / ((a.var(0) + b.var(0)) / n).sqrt()
        assert z.abs().max() < 5, moment


# --- its own laws ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STAGED)
def test_the_policy_sees_what_was_flipped_and_cropped(name):
    """By torchvision's functions; the draws of the stage come before the policy's own."""
    images = torch.rand(20, 3, 32, 32, generator=seeded(1))
    noise = seeded()
    mirrored = torch.rand(20, generator=noise) < 0.5
    top, left = torch.randint(5, (2, 20), generator=noise)
    seen = torch.stack(
        [
            F.crop(F.pad(F.vertical_flip(x) if m else x, [2, 2]), int(t), int(s), 32, 32)
            for x, m, t, s in zip(images, mirrored, top, left, strict=True)
        ]
    )
    bare, state = made(name, flip="none")
    with torch.no_grad():
        expected = bare.augment(state, seen, noise)
    if name == "predefined":  # its own shift is off beside a crop
        expected = seen
    assert torch.equal(augmented(name, images, flip="vertical", crop=2), expected)


@pytest.mark.parametrize("name", STAGED)
def test_a_square_of_the_mean_colour_is_cut_out_last(name):
    images = torch.rand(30, 3, 32, 32, generator=seeded(1))
    whole, cut = (augmented(name, images, cutout=side, erase=None) for side in (0, 16))
    hole = (cut == COLOUR).all(dim=1, keepdim=True)
    assert torch.equal(cut, torch.where(hole, COLOUR, whole))
    area = hole.sum(dim=(1, 2, 3))
    assert 8 * 8 <= area.min() and area.max() == 16 * 16


def boxes(size, n=2000, whole=False):
    if whole:
        return image_ops.draw_crops(n, size, (0.08, 1.0), seeded())
    return image_ops.draw_boxes(n, size, (0.02, 0.4), 1 / 0.3, seeded())


@pytest.mark.parametrize("size", [(32, 32), (20, 44)])
def test_parts_are_enlarged_as_torchvision_does_it(size):
    images = torch.rand(60, 3, *size, generator=seeded(1))
    box = boxes(size, 60, whole=True)
    ours = image_ops.resized_crop(images, box)
    for image, where, out in zip(images, box.tolist(), ours, strict=True):
        expected = F.resized_crop(image, *where, size=list(size), antialias=True)
        torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)
    whole = torch.tensor([[0, 0, *size]]).expand(60, 4)
    torch.testing.assert_close(image_ops.resized_crop(images, whole), images)


@pytest.mark.parametrize("size", [(32, 32), (20, 44), (12, 40)])
@pytest.mark.parametrize("whole", [False, True])
def test_rectangles_are_torchvisions_in_distribution(size, whole):
    """Those of RandomErasing, and of RandomResizedCrop, which has a central one where none fits."""
    n, image = 2000, [torch.empty(3, *size)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if whole:
            transform = v2.RandomResizedCrop(size)
            theirs = [[p[k] for k in ("top", "left", "height", "width")]
                      for p in (transform.make_params(image) for _ in range(n))]  # fmt: skip
        else:
            transform = v2.RandomErasing(scale=(0.02, 0.4), ratio=(0.3, 1 / 0.3))
            theirs = [[p[k] for k in "ijhw"] if p["v"] is not None else [0] * 4
                      for p in (transform.make_params(image) for _ in range(n))]  # fmt: skip
    ours, theirs = boxes(size, n, whole).double(), torch.tensor(theirs).double()
    for of in (lambda b: b[:, 0], lambda b: b[:, 1], lambda b: b[:, 2], lambda b: b[:, 3],
               lambda b: b[:, 2] * b[:, 3], lambda b: b[:, 2] / b[:, 3].clamp(min=1)):  # fmt: skip
        assert stats.ks_2samp(of(ours), of(theirs)).pvalue > 1e-3
    assert (ours[:, :2] >= 0).all() and (ours[:, :2] + ours[:, 2:] <= torch.tensor(size)).all()


@pytest.mark.parametrize("fill", ["noise", "mean"])
def test_boxes_are_erased_last_as_torchvision_does_it(fill):
    erase = {"chance": 0.5, "fill": fill}
    n, images = 200, torch.rand(200, 3, 32, 32, generator=seeded(1))
    still = {"flip": "none", "translate": 0}
    ours = augmented("predefined", images, **still, erase=erase)
    noise = seeded()
    box = image_ops.draw_boxes(n, (32, 32), (0.02, 0.4), 1 / 0.3, noise)
    erased = torch.rand(n, 1, generator=noise)[:, 0] < 0.5
    pixels = torch.rand(n, 3, 32, 32, generator=noise)
    assert 70 < erased.sum() < 130
    for i, (top, left, height, width) in enumerate(box.tolist()):
        inside = pixels[i, :, top : top + height, left : left + width]
        value = inside if fill == "noise" else COLOUR
        expected = F.erase(images[i], top, left, height, width, value) if erased[i] else images[i]
        assert torch.equal(ours[i], expected)


def test_areas_are_as_often_as_a_uniform_centre_makes_them():
    n, side = 20_000, 12
    size = (20, 28)
    method, state = made("predefined", flip="none", translate=0, cutout=side)
    # One value is as good as many: the mean's colour stands out from white.
    out = method.augment(state, torch.ones(n, 3, *size), seeded())
    areas = (out[:, 0] < 1).sum(dim=(1, 2)).tolist()
    possible = [
        (min(row + side // 2, size[0]) - max(row - side // 2, 0))
        * (min(column + side // 2, size[1]) - max(column - side // 2, 0))
        for row in range(size[0])
        for column in range(size[1])
    ]
    kinds = sorted(set(possible))
    assert set(areas) <= set(kinds)
    expected = [possible.count(k) / len(possible) * n for k in kinds]
    assert stats.chisquare([areas.count(k) for k in kinds], expected).pvalue > 1e-3


def test_all_shifts_are_equally_frequent():
    """A single white pixel says by where it lands how the image was shifted."""
    n = 20_000
    images = torch.zeros(n, 3, 9, 9)
    images[:, :, 4, 4] = 1
    out = augmented("predefined", images, flip="none", crop=2)
    counts = out[:, 0].sum(0)[2:7, 2:7]
    assert counts.sum() == n and stats.chisquare(counts.flatten()).pvalue > 1e-3


def test_what_is_off_draws_nothing_and_leaves_the_very_images():
    method, state = made("predefined", flip="none", translate=0)
    noise, images = seeded(), torch.rand(4, 3, 8, 8)
    before = noise.get_state()
    assert method.augment(state, images, noise) is images
    assert torch.equal(noise.get_state(), before)


def test_the_strength_of_the_stage_is_told():
    method, state = made("predefined", flip="none", crop=3, cutout=8)
    images = torch.rand(200, 3, 32, 32)
    strength = Strength(images)
    out = method.augment(state, images, seeded(), strength)
    top, left = (torch.randint(7, (2, 200), generator=seeded()) - 3).float()
    torch.testing.assert_close(
        strength.displacement(), (top**2 + left**2).sqrt(), atol=1e-5, rtol=0
    )
    still = augmented("predefined", images, flip="none", crop=3)
    torch.testing.assert_close(strength.color_change(), (out - still).abs().mean(dim=(1, 2, 3)))


def test_lighting_is_drawn_for_each_image_with_the_stated_deviation():
    """Along each principal colour, the change is normal with 0.1 times its eigenvalue."""
    images = torch.full((20_000, 3, 1, 1), 0.5)
    out = augmented("predefined", images, flip="none", translate=0, lighting=0.1)
    change = (out - images)[:, :, 0, 0] @ torch.tensor(image_ops.IMAGENET_EIGENVECTORS)
    for k, value in enumerate(image_ops.IMAGENET_EIGENVALUES):
        assert stats.kstest(change[:, k].numpy() / (0.1 * value), "norm").pvalue > 1e-3


# --- with what learns -----------------------------------------------------------------------------


@pytest.fixture
def float64(monkeypatch):
    monkeypatch.setattr(bilevel, "as_float", lambda x: x.double() / 255)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_the_hypergradient_through_the_stage_is_the_derivative_of_the_meta_loss(float64):
    """By central differences, through `augment` as the controls use it."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(108, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3)
    )
    learner = Learner(model, Training(lr=0.5), total_steps=10, noise=seeded())
    learner.begin_step()
    method = method_class("bilevel")(
        group="affine+color", crop=1, cutout=4, estimator="exact", normalise="none", every=1
    )
    state = method.start(Task(3, 6, 6, (4,) * 3, MEAN), 0, CPU)
    batch, meta = (
        Split(torch.randint(60, 200, (16, 3, 6, 6), dtype=torch.uint8), torch.arange(16) % 3)
        for _ in range(2)
    )
    start = {k: v.detach().clone() for k, v in learner.weights().items()}
    gain = state.augmenter.log_gain.detach().clone()
    method.step(learner, batch, lambda n: meta, state)
    got = state.augmenter.log_gain.grad.clone()

    def meta_loss(moved):
        state.augmenter.log_gain.data = moved
        with torch.no_grad():
            images = method.augment(state, batch.images / 255, seeded())
        loss = look_ahead.meta_loss(
            model, start, learner.rule, images, batch.labels, meta.images / 255, meta.labels
        )
        return float(loss)

    for k in range(len(gain)):
        step = torch.zeros_like(gain)
        step[k] = 1e-6
        numeric = (meta_loss(gain + step) - meta_loss(gain - step)) / 2e-6
        assert float(got[k]) == pytest.approx(numeric, rel=1e-3, abs=1e-9), k


def test_a_replayed_schedule_has_the_stage_of_the_run_that_learned_it(final_run, tmp_path):
    method, state = made("bilevel", **RECIPE)
    run = final_run("bilevel", RECIPE)
    tensors = policy.tensors(state.state_dict())
    policy.export(tmp_path, run, TASK, tensors, [(0.0, tensors)], {})
    images = torch.rand(10, 3, 32, 32)
    again = augmented("replay", images, policy=str(tmp_path / "policy.pt"))
    assert torch.equal(again, augmented("bilevel", images, **RECIPE))


def test_mixed_images_go_through_the_stage_once():
    images, then = torch.rand(10, 3, 32, 32), {"name": "predefined", **RECIPE}
    mixed = augmented("autogenda", images, then=then)
    assert torch.equal(mixed, augmented("predefined", images, **RECIPE))


# --- with the rest of the package -----------------------------------------------------------------


def test_an_exported_policy_has_the_stage_and_the_mean_of_its_training_images(final_run, tmp_path):
    run = final_run("predefined", {"flip": "none", "translate": 0, "cutout": 8})
    saved = [epoch.snapshot() for epoch in train.run(run)][-1]
    policy.export(tmp_path, run, policy.task_of(saved["shape"]), saved["state"], [], {})
    pool = data.load(run.dataset, val_fraction=None, device="cpu").train
    out = policy.load_policy(tmp_path / "policy.pt")(torch.full((50, 1, 28, 28), 255).byte())
    assert out.unique().tolist() == [round(float(pool.images.double().mean())), 255]
    assert policy.task_of([1, 28, 28, [3]]) == Task(1, 28, 28, (3,))  # of an earlier version


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"method": "randaugment", "crop": 28}, "entry.crop must be less than the 28 pixels"),
        (
            {"method": "stn", "cutout": {"grid": [8, 30]}},
            "entry.cutout must be at most 28.* got 30",
        ),
        (
            {"method": "predefined", "resized_crop": [0.5, 0.1]},
            r"entry.resized_crop.*0 < low <= high <= 1, got \[0.5, 0.1\]",
        ),
        ({"method": "stn", "erase": {"area": [0.0, 0.4]}}, r"entry.erase.*0 < low <= high <= 1"),
        ({"method": "random_erasing"}, r"entry.method: random_erasing is no method but a setting"),
        ({"method": "predefined", "lighting": 0.1}, r"entry.lighting must be 0 .* 1 channel\(s\)"),
        (
            {"method": "autogenda", "then": {"name": "predefined", "crop": 40}},
            "entry.then.crop must be less than the 28 pixels",
        ),
    ],
)
def test_what_does_not_suit_the_images_is_said_before_work_starts(entry, message, tiny):
    with pytest.raises(UserError, match=f"methods.{message}"):
        command.introduce(tiny({"entry": entry}), Console(file=io.StringIO()))


def test_a_square_has_a_middle(tiny):
    with pytest.raises(UserError, match="entry.cutout.*multiple of 2, got 15"):
        tiny({"entry": {"method": "pba", "cutout": 15}})
