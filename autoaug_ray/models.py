"""Classifiers by name. Each takes images (B, C, H, W) in [0, 1] and gives logits (B, classes)."""

import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models as torchvision_models

from autoaug_ray.errors import UserError
from autoaug_ray.settings.classifier import Classifier

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def build(
    classifier: Classifier, classes: int, mean: Tensor, std: Tensor, *, seed: int
) -> nn.Module:
    """A network that crops and normalises images (B, C, H, W) in [0, 1] and gives logits.

    `mean` and `std` (channels,) are those of the images, in the same units. The initial weights
    depend on `seed` alone, whatever was drawn before in this process; with `weights`, only the last
    layer's do, and images are normalised with the statistics of ImageNet. Weights lie in memory
    with the channels last, for which the kernels of CPUs, and of GPUs in half precision, are
    faster (`python -m autoaug_ray.bench hypergradient`). Raises UserError for weights that cannot
    be loaded or do not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if classifier.name in CLASSIFIERS and classifier.weights is None:
            channels = len(mean)
            network = CLASSIFIERS[classifier.name](channels, classes, classifier.width)
        else:
            name, channels = classifier.torchvision_name or classifier.name, 3
            network = torchvision_models.get_model(name, num_classes=classes)
    if classifier.weights is not None:
        start_from(network, classifier)
        mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    if classifier.freeze_backbone:
        network.requires_grad_(False)
        last_layer(network)[1].requires_grad_(True)
    model = nn.Sequential(Normalise(mean, std, channels, classifier.crop), network)
    return model.to(memory_format=torch.channels_last)


def last_layer(network: nn.Module) -> tuple[str, nn.Module]:
    """(name, layer) of the layer that gives the logits."""
    kinds = (nn.Linear, nn.Conv2d)
    return [(k, m) for k, m in network.named_modules() if isinstance(m, kinds)][-1]


def start_from(network: nn.Module, classifier: Classifier) -> None:
    """Load `classifier.weights` into all layers but the last. Raises UserError as `build` does."""
    assert classifier.weights is not None and classifier.torchvision_name is not None
    try:
        if classifier.weights == "imagenet":
            best = torchvision_models.get_model_weights(classifier.torchvision_name)
            state = next(iter(best)).DEFAULT.get_state_dict(
                progress=False, check_hash=True, weights_only=True
            )
        else:
            path = Path(classifier.weights).expanduser()
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(
            f"model.weights: {classifier.weights} does not exist; it must be `imagenet` or the "
            "path of a state dict."
        ) from None
    except (OSError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise UserError(
            f"model.weights: {classifier.weights} for {classifier.name} cannot be had "
            f"({' '.join(str(error).split())[:200]})."
        ) from None
    last = last_layer(network)[0]
    state = {k: v for k, v in state.items() if not k.startswith(f"{last}.")}
    expected = {k: v for k, v in network.state_dict().items() if not k.startswith(f"{last}.")}
    wrong = sorted(
        k for k in expected.keys() | state.keys()
        if k not in expected or k not in state or expected[k].shape != state[k].shape
    )  # fmt: skip
    if wrong:
        raise UserError(
            f"model.weights: {classifier.weights} is no state dict of {classifier.name}: "
            f"{len(wrong)} of its entries are missing, unknown or of another shape, the first "
            f"{wrong[0]!r}."
        )
    network.load_state_dict(state, strict=False)


class Normalise(nn.Module):
    """(x - mean) / std of the middle of the images; a grey channel is repeated if the network takes
    three."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor, channels: int, crop: int | None = None) -> None:
        super().__init__()
        self.crop = crop
        self.register_buffer("mean", mean.view(1, -1, 1, 1))
        self.register_buffer("std", std.view(1, -1, 1, 1))
        self.channels = channels

    def forward(self, images: Tensor) -> Tensor:
        if self.crop is not None:
            top, left = (max(0, n - self.crop) // 2 for n in images.shape[-2:])
            images = images[..., top : top + self.crop, left : left + self.crop]
        x = (images - self.mean) / self.std
        return x if x.shape[1] == self.channels else x.expand(-1, self.channels, -1, -1)


def cnn(channels: int, classes: int, width: int) -> nn.Module:
    """Three 3x3 convolutions with batch norm, for a laptop's CPU: 0.03 M parameters at width 16."""

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        return [conv, nn.BatchNorm2d(outputs), nn.ReLU()]

    return nn.Sequential(
        *block(channels, width), nn.MaxPool2d(2),
        *block(width, 2 * width), nn.MaxPool2d(2),
        *block(2 * width, 4 * width), nn.AdaptiveMaxPool2d(2),
        nn.Flatten(), nn.Linear(16 * width, classes),
    )  # fmt: skip


def badgan(channels: int, classes: int, width: int) -> nn.Module:
    """The 9-convolution CIFAR classifier of Dai et al. 2017 (bad GAN), leaky ReLU 0.2.

    Batch norm stands where the original has weight normalisation.
    """
    layers: list[nn.Module] = [nn.Dropout2d(0.2)]
    plan = [(96, 3, 1), (96, 3, 1), (96, 3, 2), (192, 3, 1), (192, 3, 1), (192, 3, 2),
            (192, 3, 1), (192, 1, 1), (192, 1, 1)]  # fmt: skip
    for i, (outputs, kernel, stride) in enumerate(plan):
        # Only the seventh convolution is unpadded in the original.
        padding = 0 if i == 6 else kernel // 2
        layers += [
            nn.Conv2d(channels, outputs, kernel, stride, padding, bias=False),
            nn.BatchNorm2d(outputs),
            nn.LeakyReLU(0.2),
        ]
        if stride == 2:
            layers.append(nn.Dropout(0.5))
        channels = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(192, classes))


def resnet18(channels: int, classes: int, width: int) -> nn.Module:
    """He et al. 2016 with the 3x3 stem and no max-pool, as on CIFAR: 11.2 M parameters."""
    network: nn.Module = torchvision_models.resnet18(num_classes=classes)
    network.conv1 = nn.Conv2d(channels, 64, 3, 1, 1, bias=False)
    network.maxpool = nn.Identity()
    return network


def resnet50(channels: int, classes: int, width: int) -> nn.Module:
    """He et al. 2016, torchvision's, with the 7x7 stem of ImageNet."""
    network: nn.Module = torchvision_models.resnet50(num_classes=classes)
    if channels != 3:
        network.conv1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
    return network


class _PlainShortcutBlock(nn.Module):
    """Two 3x3 convolutions; if they change the shape, the shortcut subsamples and pads zeros."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.stride, self.padding = stride, (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        short = x[:, :, :: self.stride, :: self.stride]
        short = F.pad(short, (0, 0, 0, 0, self.padding, self.padding))
        h = F.relu(self.bn1(self.conv1(x)))
        return F.relu(short + self.bn2(self.conv2(h)))


def _cifar_resnet(depth: int, channels: int, classes: int, width: int) -> nn.Module:
    """He et al. 2016, section 4.2: 6n + 2 layers, parameter-free shortcuts (option A)."""
    layers: list[nn.Module] = [
        nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
    ]  # fmt: skip
    inputs = width
    for outputs, stride in ((width, 1), (2 * width, 2), (4 * width, 2)):
        for i in range((depth - 2) // 6):
            layers.append(_PlainShortcutBlock(inputs, outputs, stride if i == 0 else 1))
            inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


class _WideBlock(nn.Module):
    """Pre-activation block; if it changes the shape, the shortcut is a 1x1 convolution."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut = (
            None if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn1(x))
        short = x if self.shortcut is None else self.shortcut(h)
        out: Tensor = short + self.conv2(F.relu(self.bn2(self.conv1(h))))
        return out


def _wide_resnet(depth: int, channels: int, classes: int, width: int) -> nn.Module:
    """Zagoruyko and Komodakis 2016, no dropout: 6n + 4 layers, `width` = 16k channels at first."""
    layers: list[nn.Module] = [nn.Conv2d(channels, 16, 3, 1, 1, bias=False)]
    inputs = 16
    for outputs, stride in ((width, 1), (2 * width, 2), (4 * width, 2)):
        for i in range((depth - 4) // 6):
            layers.append(_WideBlock(inputs, outputs, stride if i == 0 else 1))
            inputs = outputs
    head = [nn.BatchNorm2d(inputs), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, *head, nn.Linear(inputs, classes))


def wrn_28_10(channels: int, classes: int, width: int) -> nn.Module:
    """36.5 M parameters for 10 classes."""
    return _wide_resnet(28, channels, classes, 160)


CLASSIFIERS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "cnn": cnn,
    "badgan": badgan,
    **{f"resnet{depth}": partial(_cifar_resnet, depth) for depth in (8, 20, 32, 56)},
    "resnet18": resnet18,
    "resnet50": resnet50,
    "wrn-10": partial(_wide_resnet, 10),
    "wrn-28-10": wrn_28_10,
}
"""name -> function of (channels, classes, width)."""


def parameter_count(module: nn.Module) -> int:
    """Number of weights, whether they learn or not."""
    return sum(p.numel() for p in module.parameters())
