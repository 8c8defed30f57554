import pytest
import torch

from autoaug_ray.maths.augmenter import (
    BOUNDS,
    Augmenter,
    PublishedAugmenter,
    parameter_names,
    transform,
)
from autoaug_ray.maths.strength import Strength

GROUPS = ["translation", "affine", "color", "translation+color", "affine+color"]


@pytest.mark.parametrize("size", ["scale", "small", "medium", "large"])
@pytest.mark.parametrize("group", GROUPS)
def test_symmetric_by_construction_bounded_and_of_known_spread(group, size):
    names = parameter_names(group, 3)
    augmenter = Augmenter(names, size, spread=0.1, seed=3)
    z = augmenter.draw(4096, torch.Generator().manual_seed(0))
    p = augmenter(z)
    torch.testing.assert_close(augmenter(-z), -p)
    bounds = torch.tensor([BOUNDS[n] for n in names])
    assert (p.abs() <= bounds).all()
    torch.testing.assert_close(p.std(0) / bounds, torch.full((len(names),), 0.1), rtol=0.1, atol=0)
    # Not correlated: else a translation would cover a diagonal of the square only.
    correlation = torch.corrcoef(p.T).view(len(names), len(names))
    assert (correlation - torch.eye(len(names))).abs().max() < 0.1


def test_asymmetric_on_request():
    augmenter = Augmenter(("brightness",), "small", symmetric=False)
    z = augmenter.draw(8, torch.Generator().manual_seed(0))
    assert not torch.allclose(augmenter(-z), -augmenter(z))


def test_layer_sizes_are_the_papers():
    sizes = {
        size: [m.out_features for m in Augmenter(("a",) * 0 or parameter_names("affine", 3), size)
               .network if hasattr(m, "out_features")]
        for size in ("small", "medium", "large")
    }  # fmt: skip
    assert sizes == {"small": [6, 60, 6], "medium": [64, 32, 6], "large": [512, 1024, 124, 512, 6]}


@pytest.mark.parametrize("size, widths", [
    ("small", [(6, 6), (6, 60), (60, 6)]),
    ("medium", [(100, 64), (64, 32), (32, 6)]),
    ("large", [(100, 512), (512, 1024), (1024, 124), (124, 512), (512, 6)]),
])  # fmt: skip
def test_the_published_augmenter_is_the_mlp_of_the_text_and_nothing_else(size, widths):
    augmenter = PublishedAugmenter(parameter_names("affine", 3), size)
    layers = [m for m in augmenter.modules() if isinstance(m, torch.nn.Linear)]
    assert [(m.in_features, m.out_features) for m in layers] == widths
    assert sum(p.numel() for p in augmenter.parameters()) == sum((i + 1) * o for i, o in widths)


@pytest.mark.parametrize("group, most", [
    ("translation", [1, 1]), ("affine", [torch.inf] * 6), ("color", [1, 1, 1, 0.5]),
    ("affine+color", [1] * 9 + [0.5]),
])  # fmt: skip
def test_published_parameters_are_bounded_by_tanh_unless_affine_alone_is_learned(group, most):
    augmenter = PublishedAugmenter(parameter_names(group, 3))
    with torch.no_grad():
        for p in augmenter.parameters():
            p.abs_()
        augmenter.network[-1].weight.fill_(100.0)
    p = augmenter(torch.ones(1, augmenter.noise_size))[0].detach()
    bounds = torch.tensor(most, dtype=p.dtype)
    assert torch.allclose(p, bounds) if bounds.isfinite().all() else (p > 2).all()


def test_grey_images_have_neither_saturation_nor_hue():
    assert parameter_names("color", 1) == ("brightness", "contrast")
    assert parameter_names("translation+color", 3)[-1] == "hue"


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("channels", [1, 3])
def test_zero_parameters_are_the_identity(group, channels):
    x = torch.rand(4, channels, 9, 7)
    names = parameter_names(group, channels)
    torch.testing.assert_close(transform(x, torch.zeros(4, len(names)), names), x)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_gradient_reaches_every_parameter_of_every_augmenter(channels):
    for group in GROUPS:
        augmenter = Augmenter(parameter_names(group, channels))
        x = torch.rand(16, channels, 12, 12)
        z = augmenter.draw(16, torch.Generator().manual_seed(0))
        out = transform(x, augmenter(z), augmenter.names)
        out.square().mean().backward()
        for name, p in augmenter.named_parameters():
            assert p.grad is not None and p.grad.abs().sum() > 0, (group, name)


def test_translation_by_known_pixels():
    x = torch.zeros(1, 1, 8, 8)
    x[0, 0, 3, 3] = 1
    strength = Strength(x)
    # 0.5 normalised = 2 pixels of 8: the output shows what the input has 2 pixels to the right.
    out = transform(x, torch.tensor([[0.5, 0.0]]), ("translate_x", "translate_y"), strength)
    assert out[0, 0, 3, 1] == 1 and out.sum() == 1
    torch.testing.assert_close(strength.displacement(), torch.tensor([2.0]))


def test_initial_weights_depend_on_the_seed_alone():
    a = Augmenter(("hue",), "small", seed=1)
    torch.rand(7)
    b, c = Augmenter(("hue",), "small", seed=1), Augmenter(("hue",), "small", seed=2)
    same = [torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True)]
    assert all(same)
    assert not torch.equal(a.network[0].weight, c.network[0].weight)
