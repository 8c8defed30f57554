"""maths/image_ops.py and maths/strength.py: torchvision and closed forms are the oracles."""

import math

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F
from torchvision_ops import torchvision_op

from autoaug_ray.maths import image_ops
from autoaug_ray.maths.image_ops import (
    OPS,
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_lighting,
    adjust_saturation,
    affine_matrix,
    apply_ops,
    cutout,
    identity_matrix,
    pad_crop,
    warp,
)
from autoaug_ray.maths.strength import Strength, sampling_grid

LEVEL = 1 / 255
H, W = 20, 28
GEOMETRIC = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
FACTORS = torch.tensor([0.0, 0.3, 0.8, 1.0, 1.2, 1.9, 3.0])
TURNS = torch.tensor([-0.5, -0.3, -1 / 12, 0.0, 0.2, 0.45, 0.5])
# Pixels where HSV or a clamp has a corner: black, white, grey, saturated, two equal channels, dark.
CORNERS = [(0, 0, 0), (1, 1, 1), (0.5, 0.5, 0.5), (1, 0, 0), (1, 1, 0), (0, 1, 1), (1e-4, 0, 0)]


def levels(n: int, channels: int, kind: str, seed: int = 0) -> Tensor:
    """(n, channels, H, W) uint8: white noise, or smooth like a photograph with few levels used."""
    g = torch.Generator().manual_seed(seed)
    if kind == "noise":
        return torch.randint(0, 256, (n, channels, H, W), generator=g, dtype=torch.uint8)
    coarse = torch.rand(n, channels, 4, 5, generator=g) * torch.rand(n, 1, 1, 1, generator=g)
    smooth = torch.nn.functional.interpolate(coarse, size=(H, W), mode="bicubic").clamp(0, 1)
    return (smooth * 255).to(torch.uint8)


def op_index(name: str, n: int) -> Tensor:
    return torch.full((n,), OPS.index(name))


# --- warp and matrices ----------------------------------------------------------------------------


def some_affines(n: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=g, dtype=torch.float64) * (high - low) + low

    return dict(
        angle=uniform(-170, 170, n),
        translate=uniform(-7, 7, n, 2),
        scale=uniform(0.5, 2, n),
        shear=uniform(-40, 40, n, 2),
    )


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("channels", [1, 3])
def test_affine_matrix_is_torchvisions_affine(mode: str, channels: int) -> None:
    images = levels(8, channels, "smooth").double() / 255
    p = some_affines(8)
    ours = warp(images, affine_matrix(**p, size=(H, W)), mode=mode)
    for i in range(8):
        theirs = F.affine(
            images[i],
            angle=p["angle"][i].item(),
            translate=p["translate"][i].tolist(),
            scale=p["scale"][i].item(),
            shear=p["shear"][i].tolist(),
            interpolation=InterpolationMode(mode),
        )
        torch.testing.assert_close(ours[i], theirs, atol=1e-9, rtol=0)


def test_sampling_grid_is_torchs_affine_grid() -> None:
    matrix = affine_matrix(**some_affines(5), size=(H, W))
    theirs = torch.nn.functional.affine_grid(matrix, [5, 1, H, W], align_corners=False)
    torch.testing.assert_close(sampling_grid(matrix, H, W), theirs, atol=1e-12, rtol=0)


def test_identity_matrix_returns_the_image() -> None:
    images = levels(4, 3, "noise").float() / 255
    matrix = identity_matrix(4, images)
    assert matrix.shape == (4, 2, 3) and matrix.dtype == images.dtype
    torch.testing.assert_close(warp(images, matrix), images, atol=1e-5, rtol=0)
    assert torch.equal(warp(images, matrix, mode="nearest"), images)
    nothing = torch.zeros(4)
    neutral = affine_matrix(
        angle=nothing,
        translate=torch.zeros(4, 2),
        scale=nothing + 1,
        shear=torch.zeros(4, 2),
        size=(H, W),
    )
    assert torch.equal(neutral, matrix)


def test_warp_is_differentiable_in_images_and_matrix() -> None:
    images = (levels(2, 1, "noise")[:, :, :5, :6].double() / 255).requires_grad_()
    matrix = identity_matrix(2, images) * 0.9 + 0.0123  # away from the kinks of bilinear weights
    assert torch.autograd.gradcheck(warp, (images, matrix.requires_grad_()))


def test_affine_matrix_is_differentiable_in_every_parameter() -> None:
    p = {k: v.requires_grad_() for k, v in some_affines(2).items()}
    assert torch.autograd.gradcheck(
        lambda *v: affine_matrix(**dict(zip(p, v, strict=True)), size=(H, W)), tuple(p.values())
    )


def test_shapes_are_checked() -> None:
    images = torch.rand(3, 1, 4, 4)
    with pytest.raises(ValueError, match=r"matrix must have shape \(3, 2, 3\).*\(1, 2, 3\)"):
        warp(images, identity_matrix(1, images))
    with pytest.raises(ValueError, match=r"factor must have shape \(3,\)"):
        adjust_brightness(images, torch.ones(1))
    with pytest.raises(ValueError, match=r"translate must have shape \(3, 2\)"):
        affine_matrix(
            angle=torch.zeros(3), translate=torch.zeros(3), scale=torch.ones(3),
            shear=torch.zeros(3, 2), size=(4, 4),
        )  # fmt: skip
    for wrong in (-1, len(OPS)):
        with pytest.raises(ValueError, match="op must be in 0..14, but 1 samples"):
            apply_ops(images, torch.tensor([0, wrong, 0]), torch.zeros(3))
    with pytest.raises(ValueError, match=r"magnitude must have shape \(3,\)"):
        apply_ops(images, torch.zeros(3, dtype=torch.long), torch.zeros(1))


# --- colour ---------------------------------------------------------------------------------------

COLOR = [
    (adjust_brightness, F.adjust_brightness, FACTORS, 1e-6),
    # 1e-4 |1 - factor| for the grey weights: torchvision's sum to 0.9999.
    (adjust_contrast, F.adjust_contrast, FACTORS, 2.1e-4),
    (adjust_saturation, F.adjust_saturation, FACTORS, 2.1e-4),
    (adjust_hue, F.adjust_hue, TURNS, 1e-5),
]
BY_NAME = pytest.mark.parametrize(
    "ours,theirs,values,tolerance", COLOR, ids=lambda v: getattr(v, "__name__", "")
)


@BY_NAME
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["noise", "smooth"])
def test_colour_is_torchvisions(ours, theirs, values, tolerance, channels, kind) -> None:
    images = levels(len(values), channels, kind).float() / 255
    result = ours(images, values)
    expected = torch.stack([theirs(x, v) for x, v in zip(images, values.tolist(), strict=True)])
    torch.testing.assert_close(result, expected, atol=tolerance, rtol=0)
    assert 0 <= result.min() and result.max() <= 1


@BY_NAME
def test_neutral_colour_is_the_identity_and_grey_images_have_no_colour(
    ours, theirs, values, tolerance
) -> None:
    images = levels(3, 3, "noise").float() / 255
    neutral = torch.zeros(3) if ours is adjust_hue else torch.ones(3)
    torch.testing.assert_close(ours(images, neutral), images, atol=2e-6, rtol=0)
    if ours in (adjust_hue, adjust_saturation):
        grey = images[:, :1]
        assert torch.equal(ours(grey, neutral - 0.3), grey)
        three = grey.expand(-1, 3, -1, -1)
        torch.testing.assert_close(ours(three, neutral - 0.3), three, atol=1e-6, rtol=0)


def test_contrast_is_about_the_samples_mean_and_brightness_is_not() -> None:
    """The "contrast" of the bilevel authors' code adds a number: 0.5 grey plus 0.3 becomes 0.8."""
    flat = torch.tensor([0.2, 0.5]).view(2, 1, 1, 1).expand(2, 3, 4, 4)
    torch.testing.assert_close(adjust_contrast(flat, torch.tensor([0.3, 1.7])), flat)
    assert torch.allclose(
        adjust_brightness(flat, torch.tensor([0.5, 1.5]))[:, 0, 0, 0], torch.tensor([0.1, 0.75])
    )


def test_hue_is_cyclic_and_red_moves_both_ways() -> None:
    third = 1 / 3
    red = torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1).expand(4, 3, 1, 1)
    turned = adjust_hue(red, torch.tensor([third, -third, 0.5, -0.5]))[:, :, 0, 0]
    expected = torch.tensor([[0.0, 1, 0], [0, 0, 1], [0, 1, 1], [0, 1, 1]])
    torch.testing.assert_close(turned, expected, atol=1e-5, rtol=0)
    images = levels(5, 3, "noise").float() / 255
    turns = torch.linspace(-0.5, 0.5, 5)
    torch.testing.assert_close(
        adjust_hue(adjust_hue(images, turns), -turns), images, atol=1e-5, rtol=0
    )


@BY_NAME
def test_colour_gradients_are_right_and_finite_everywhere(ours, theirs, values, tolerance) -> None:
    smooth = levels(2, 3, "noise")[:, :, :3, :3].double() / 255 * 0.5 + 0.2
    strengths = torch.tensor([0.11, 0.23] if ours is adjust_hue else [0.9, 1.05])
    assert torch.autograd.gradcheck(
        ours, (smooth.requires_grad_(), strengths.double().requires_grad_())
    )
    corners = (
        torch.tensor(CORNERS).T.reshape(1, 3, 1, -1).repeat(len(values), 1, 1, 1).requires_grad_()
    )
    values = values.clone().requires_grad_()
    ours(corners, values).square().sum().backward()
    assert corners.grad is not None and corners.grad.isfinite().all()
    assert values.grad is not None and values.grad.isfinite().all()


# --- the AutoAugment family -----------------------------------------------------------------------


def magnitudes_of(name: str, n: int) -> Tensor:
    """(n,) different magnitudes over the whole range of TrivialAugment and beyond 32 px images."""
    spans = {
        "Posterize": torch.arange(n) % 9.0,
        "Solarize": torch.linspace(0, 255, n).round() / 255,
        "Rotate": torch.linspace(-135, 135, n) + 0.1,
        "TranslateX": torch.linspace(-32, 32, n),
        "TranslateY": torch.linspace(-23, 23, n),
    }
    return spans.get(name, torch.linspace(-0.99, 0.99, n))


# In levels of 1/255. torchvision truncates uint8 results (< 1); before that it truncates the grey
# of Color and Contrast too (< 1 x |m|), and rounds the blur of Sharpness (<= 0.5 x |m|).
TOLERANCE = dict(Brightness=1, Color=2, Contrast=2, Sharpness=1.5, AutoContrast=1)


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["noise", "smooth"])
def test_ops_are_torchvisions_on_uint8(name: str, channels: int, kind: str) -> None:
    n = 27
    images, m = levels(n, channels, kind), magnitudes_of(name, n)
    ours = apply_ops(images.float() / 255, op_index(name, n), m) * 255
    theirs = torch.stack(
        [torchvision_op(x, name, v) for x, v in zip(images, m.tolist(), strict=True)]
    )
    wrong = (ours - theirs.float()).abs() > TOLERANCE.get(name, 0) + 1e-3
    if name in GEOMETRIC:
        # Where the source lies on the border of two pixels, rounding noise picks one of them.
        matrix = image_ops._op_matrix(op_index(name, n), m.double(), (H, W))
        source = (sampling_grid(matrix, H, W) + 1) * torch.tensor([W / 2, H / 2])
        tie = ((source - source.round()).abs() < 1e-4).any(dim=-1)
        assert tie.float().mean() < 0.03
        wrong &= ~tie[:, None]
    assert not wrong.any()


@pytest.mark.parametrize("name", ["Equalize", "AutoContrast"])
def test_images_without_contrast_stay(name: str) -> None:
    flat = torch.tensor([0, 77, 255]).view(3, 1, 1, 1).expand(3, 3, H, W) / 255
    assert torch.equal(apply_ops(flat, op_index(name, 3), torch.zeros(3)), flat)


def test_a_solarize_threshold_that_is_a_level_inverts_that_level() -> None:
    value = torch.arange(256).view(256, 1, 1, 1) / 255
    out = apply_ops(value, op_index("Solarize", 256), torch.arange(256) / 255)
    torch.testing.assert_close(out, 1 - value)


def test_a_batch_is_its_samples_one_by_one() -> None:
    images = levels(60, 3, "noise").float() / 255
    op = torch.arange(60) % len(OPS)
    m = torch.stack([magnitudes_of(OPS[int(o)], 60)[i] for i, o in enumerate(op)])
    whole = Strength(images)
    batch = apply_ops(images, op, m, whole)
    for i in range(60):
        one = Strength(images[i : i + 1])
        alone = apply_ops(images[i : i + 1], op[i : i + 1], m[i : i + 1], one)
        assert torch.equal(batch[i : i + 1], alone), OPS[int(op[i])]
        assert torch.equal(whole.displacement()[i : i + 1], one.displacement())
        assert torch.equal(whole.color_change()[i : i + 1], one.color_change())


def test_ops_stay_in_range_leave_their_input_alone_and_take_any_float_image() -> None:
    images = torch.rand(90, 3, 9, 7, generator=torch.Generator().manual_seed(0))
    images[:10] = images[:10].round()  # black, white and pure colours
    kept, op = images.clone(), torch.arange(90) % len(OPS)
    m = torch.stack([magnitudes_of(OPS[int(o)], 90)[i] for i, o in enumerate(op)])
    out = apply_ops(images, op, m)
    assert torch.equal(images, kept)
    assert out.shape == images.shape and 0 <= out.min() and out.max() <= 1
    assert not torch.equal(out, images)


def test_zero_magnitude_is_the_identity() -> None:
    images = torch.rand(11, 3, H, W, generator=torch.Generator().manual_seed(0)) * 0.99
    still = ["Identity", *GEOMETRIC, "Brightness", "Color", "Contrast", "Sharpness"]
    op = torch.tensor([OPS.index(name) for name in still] + [OPS.index("Posterize")])
    m = torch.tensor([0.0] * len(still) + [8.0])
    strength = Strength(images)
    torch.testing.assert_close(apply_ops(images, op, m, strength), images, atol=1e-6, rtol=0)
    assert strength.displacement().max() == 0 and strength.color_change().max() < 1e-6


def test_ops_report_what_they_did() -> None:
    images = levels(5, 3, "noise").float() / 255
    names = ["TranslateX", "TranslateY", "Rotate", "Invert", "Identity"]
    op, m = torch.tensor([OPS.index(name) for name in names]), torch.tensor([3.7, -5.0, 90, 0, 0])
    strength = Strength(images)
    out = apply_ops(images, op, m, strength)
    moved = strength.displacement()
    torch.testing.assert_close(moved[[0, 1, 3, 4]], torch.tensor([3.0, 5.0, 0, 0]))
    torch.testing.assert_close(moved[2], mean_chord(90.0).float())
    expected = torch.tensor([0, 0, 0, (out - images)[3].abs().mean(), 0])
    torch.testing.assert_close(strength.color_change(), expected)


def test_padding_reaches_the_warp() -> None:
    white = torch.ones(1, 1, 4, 4)
    args = (white, op_index("TranslateX", 1), torch.tensor([2.0]))
    assert apply_ops(*args)[0, 0, 0].tolist() == [0, 0, 1, 1]
    assert apply_ops(*args, padding="border")[0, 0, 0].tolist() == [1, 1, 1, 1]


def test_cutout_paints_one_square_per_sample() -> None:
    images = torch.ones(4, 3, 6, 8)
    row, column, side = (
        torch.tensor([2, 0, 5, 3]),
        torch.tensor([3, 0, 7, 4]),
        torch.tensor([4, 4, 5, 1]),
    )
    hole = cutout(images, row, column, side) == 0.5
    assert torch.equal(hole.sum(dim=(1, 2, 3)), 3 * torch.tensor([16, 4, 9, 0]))
    assert hole[0, :, 0:4, 1:5].all() and hole[1, :, :2, :2].all() and hole[2, :, 3:, 5:].all()


def test_cutout_is_the_loop_of_devries_and_taylor() -> None:
    """Their util/cutout.py writes normalised zeros, which are the colour of the mean here."""
    images = levels(200, 3, "noise").float() / 255
    g = torch.Generator().manual_seed(0)
    row, column = (torch.randint(side, (200,), generator=g) for side in (H, W))
    colour = torch.tensor([0.5, 0.4, 0.3])[:, None, None]
    out = cutout(images, row, column, torch.full((200,), 16), colour)
    for image, r, c, cut in zip(images, row.tolist(), column.tolist(), out, strict=True):
        expected = image.clone()
        top, bottom = max(r - 16 // 2, 0), min(r + 16 // 2, H)
        left, right = max(c - 16 // 2, 0), min(c + 16 // 2, W)
        expected[:, top:bottom, left:right] = colour
        assert torch.equal(cut, expected)


# --- crop and lighting ----------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_pad_crop_is_torchvisions_at_every_offset(channels: int) -> None:
    offsets = torch.cartesian_prod(torch.arange(9), torch.arange(9))
    images = levels(len(offsets), channels, "noise").float() / 255
    strength = Strength(images)
    out = pad_crop(images, 4, *offsets.unbind(1), strength)
    for image, (top, left), cropped in zip(images, offsets.tolist(), out, strict=True):
        assert torch.equal(cropped, F.crop(F.pad(image, [4, 4]), top, left, H, W))
    moved = (offsets - 4).float().norm(dim=1)
    torch.testing.assert_close(strength.displacement(), moved, atol=1e-5, rtol=1e-5)


def test_a_crop_is_the_warp_by_as_many_pixels() -> None:
    """The other way that images are shifted: `predefined` translates by a matrix."""
    images = levels(3, 3, "noise").double() / 255
    top, left = torch.tensor([0, 4, 7]), torch.tensor([8, 4, 3])
    warped = warp(images, motion(3, translate=[[-4, 4], [0, 0], [1, -3]]))
    torch.testing.assert_close(pad_crop(images, 4, top, left), warped)


def test_crop_and_cutout_have_second_derivatives_in_the_images() -> None:
    images = torch.rand(2, 1, 4, 5, dtype=torch.float64, requires_grad=True)
    where = torch.tensor([0, 3])

    def square_of_both(x: Tensor) -> Tensor:
        return cutout(pad_crop(x, 2, where, where), where, where, torch.full((2,), 2)) ** 2

    assert torch.autograd.gradcheck(square_of_both, (images,))
    assert torch.autograd.gradgradcheck(square_of_both, (images,))


def test_lighting_is_a_walk_along_the_principal_colours() -> None:
    images = levels(5, 3, "noise").double() / 1000 + 0.3  # no pixel is clamped
    alpha = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) / 10
    change = adjust_lighting(images, alpha) - images
    values, vectors = image_ops.IMAGENET_EIGENVALUES, image_ops.IMAGENET_EIGENVECTORS
    for sample, weights in zip(change, alpha.tolist(), strict=True):
        for channel in range(3):
            steps = (weights[k] * values[k] * vectors[channel][k] for k in range(3))
            torch.testing.assert_close(sample[channel], torch.full((H, W), sum(steps)).double())
    # Eigenvectors of a covariance are orthonormal, here as far as four digits say.
    v = torch.tensor(vectors)
    torch.testing.assert_close(v.T @ v, torch.eye(3), atol=2e-4, rtol=0)
    bright = adjust_lighting(torch.ones(1, 3, 2, 2), torch.tensor([[-9.0, 0, 0]]))
    assert torch.equal(bright, torch.ones(1, 3, 2, 2))  # a change upwards, clamped


# --- Strength -------------------------------------------------------------------------------------


def mean_chord(degrees: float) -> Tensor:
    """Mean over the pixels of an H x W image of 2 sin(angle / 2) x distance to the centre."""
    y = torch.arange(H, dtype=torch.float64) + 0.5 - H / 2
    x = torch.arange(W, dtype=torch.float64) + 0.5 - W / 2
    radius = (y[:, None] ** 2 + x**2).sqrt().mean()
    return 2 * math.sin(math.radians(degrees) / 2) * radius


def motion(n: int = 1, **changes: list[float]) -> Tensor:
    """(n, 2, 3) float64 matrix of affine_matrix with everything else neutral."""
    neutral = dict(
        angle=[0.0] * n, translate=[[0.0, 0.0]] * n, scale=[1.0] * n, shear=[[0.0, 0.0]] * n
    )
    values = {k: torch.tensor(v, dtype=torch.float64) for k, v in (neutral | changes).items()}
    return affine_matrix(**values, size=(H, W))


def test_displacement_of_translations_rotations_and_zooms() -> None:
    images = torch.rand(4, 1, H, W, dtype=torch.float64)
    strength = Strength(images)
    angles = [0.0, 0.0, 33.0, 0.0]
    warp(
        images,
        motion(4, translate=[[3.0, 0], [-3, 4], [0, 0], [0, 0]], angle=angles),
        strength=strength,
    )
    expected = torch.tensor([3, 5, float(mean_chord(33.0)), 0], dtype=torch.float64)
    torch.testing.assert_close(strength.displacement(), expected)
    assert strength.color_change().tolist() == [0] * 4


def test_displacement_composes_warps_in_call_order_as_the_pixels_do() -> None:
    """Oracle: an image whose values are its own coordinates, really warped twice.

    Both warps zoom in so far that every pixel comes from inside, where bilinear is exact.
    """
    first = motion(angle=[70.0], scale=[2.5], translate=[[1.0, -2.0]])
    second = motion(scale=[2.0], translate=[[-5.0, 2.0]], shear=[[15.0, 0.0]])
    x = (torch.arange(W, dtype=torch.float64) + 0.5).expand(H, W)
    y = (torch.arange(H, dtype=torch.float64)[:, None] + 0.5).expand(H, W)
    here = torch.stack([x, y])[None]
    values = []
    for order in ((first, second), (second, first)):
        strength, seen = Strength(here), here
        for matrix in order:
            seen = warp(seen, matrix, strength=strength)
        values.append((seen - here).norm(dim=1).mean().item())
        assert strength.displacement().item() == pytest.approx(values[-1], rel=1e-9)
    assert abs(values[0] - values[1]) > 0.1  # or the order would not have been tested


def test_strength_of_some_samples_only_and_without_gradient() -> None:
    images = torch.rand(4, 3, H, W)
    strength = Strength(images)
    shift = motion(2, translate=[[2.0, 0], [0.0, 1.0]]).float().requires_grad_()
    strength.warp(shift, torch.tensor([3, 1]))
    strength.warp(shift, torch.tensor([True, False, False, True]))
    expected = torch.tensor([2, 1, 0, math.hypot(2, 1)])
    torch.testing.assert_close(strength.displacement(), expected)
    before = torch.zeros(2, 3, H, W, requires_grad=True)
    strength.color(before, before + 0.25, torch.tensor([0, 2]))
    strength.color(before, before - 0.5, torch.tensor([2, 3]))
    torch.testing.assert_close(strength.color_change(), torch.tensor([0.25, 0, 0.75, 0.5]))
    assert not strength.displacement().requires_grad and not strength.color_change().requires_grad


def test_bilinear_ops_move_by_parts_of_a_pixel() -> None:
    ramp = torch.arange(8.0).expand(1, 1, 8, 8) / 8
    args = (ramp, op_index("TranslateX", 1), torch.tensor([2.5]))
    assert torch.equal(apply_ops(*args)[..., 3:], ramp[..., 1:6])
    torch.testing.assert_close(apply_ops(*args, mode="bilinear")[..., 3:], ramp[..., 1:6] - 1 / 16)


@pytest.mark.parametrize("name", [*OPS[1:10]])
def test_bilinear_and_factor_ops_are_differentiable_in_their_magnitudes(name: str) -> None:
    images = torch.rand(3, 3, 6, 7, generator=torch.Generator().manual_seed(0)).double()
    images = 0.3 + 0.4 * images
    m = torch.tensor([0.11, -0.23, 0.31], dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda m: apply_ops(images, op_index(name, 3), m, mode="bilinear"), m
    )
    nearest = torch.autograd.grad(apply_ops(images, op_index(name, 3), m).sum(), m)[0]
    assert bool(nearest.any()) == (name in OPS[6:10])
