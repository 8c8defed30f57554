"""Classifiers by name. Each takes images (B, C, H, W) in [0, 1] and gives logits (B, classes)."""

from collections.abc import Callable
from functools import partial
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models as torchvision_models

from autoaug_ray.errors import UserError
from autoaug_ray.models.layers import depths
from autoaug_ray.models.libraries import (
    Logits,
    Wanted,
    last_layer,
    library_network,
    start_from,
    wanted_by,
)
from autoaug_ray.settings.classifier import Classifier


def build(
    classifier: Classifier, classes: int, mean: Tensor, std: Tensor, *, seed: int
) -> nn.Module:
    """A network that crops, scales and normalises images (B, C, H, W) in [0, 1] and gives logits.

    `mean` and `std` (channels,) are those of the images, in the same units. The initial weights
    depend on `seed` alone, whatever was drawn before in this process; with `weights`, only the last
    layer's do, and images are normalised with the statistics of those that the weights have seen.
    Weights lie in memory with the channels last, for which the kernels of CPUs, and of GPUs in half
    precision, are faster (`python -m autoaug_ray.bench hypergradient`). Raises UserError for a
    network or weights that cannot be loaded or do not fit.
    """
    wanted, channels = Wanted(), 3
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if classifier.name in CLASSIFIERS and classifier.weights is None:
            channels = len(mean)
            network = CLASSIFIERS[classifier.name](channels, classes, classifier.width)
        else:
            network = library_network(classifier, classes)
            wanted = wanted_by(classifier, network)
    if classifier.weights is not None:
        start_from(network, classifier)
    if wanted.mean is not None:
        mean, std = torch.tensor(wanted.mean), torch.tensor(wanted.std)
    if classifier.frozen:
        network.requires_grad_(False)
        last_layer(network)[1].requires_grad_(True)
    prepare = Normalise(mean, std, channels, classifier.crop, wanted.size, wanted.mode)
    output = [Logits()] if classifier.library == "hf" else []
    model = (HeadOnly if classifier.head_only else nn.Sequential)(prepare, network, *output)
    return model.to(memory_format=torch.channels_last)


def check(
    classifier: Classifier,
    classes: int,
    shape: tuple[int, int, int],
    *,
    layer_wise: bool = False,
) -> None:
    """Build the network and let two images of this shape, (channels, H, W), through it.

    Raises UserError, as `build` does, or if it takes no such images or gives no such logits, or has
    no order of blocks for rates that are `layer_wise`.
    """
    channels = torch.ones(shape[0])
    model = build(classifier, classes, 0 * channels, channels, seed=0)
    if layer_wise:
        depths(model)
    size = f"{shape[1]} x {shape[2]}"
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            logits = model(torch.full((2, *shape), 0.5))
        except (RuntimeError, ValueError, AssertionError) as error:
            reason = " ".join(str(error).split())[:200].rstrip(".")
            raise UserError(
                f"model.name: {classifier.name} cannot take images of {size} pixels ({reason}); "
                "dataset.image_size scales them."
            ) from None
    if not isinstance(logits, Tensor) or logits.shape != (2, classes):
        got = f"{list(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(
            f"model.name: {classifier.name} does not give one logit for each of {classes} classes "
            f"while it trains, but {got} for 2 images."
        )


class HeadOnly(nn.Sequential):
    """A network that is as in evaluation while its last layer, which has no modes, learns."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__(*parts)
        self.train()

    def train(self, mode: bool = True) -> Self:
        super().train(False)
        self.training = mode
        return self


class Normalise(nn.Module):
    """(x - mean) / std of the middle of the images, scaled to `size` (height, width) if that is not
    theirs; a grey channel is repeated if the network takes three."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        mean: Tensor,
        std: Tensor,
        channels: int,
        crop: int | None = None,
        size: tuple[int, int] | None = None,
        mode: str = "bilinear",
    ) -> None:
        super().__init__()
        self.crop, self.size, self.mode = crop, size, mode
        self.register_buffer("mean", mean.view(1, -1, 1, 1))
        self.register_buffer("std", std.view(1, -1, 1, 1))
        self.channels = channels

    def forward(self, images: Tensor) -> Tensor:
        if self.crop is not None:
            top, left = (max(0, n - self.crop) // 2 for n in images.shape[-2:])
            images = images[..., top : top + self.crop, left : left + self.crop]
        if self.size is not None and images.shape[-2:] != self.size:
            smooth = self.mode != "nearest-exact"
            images = F.interpolate(images, self.size, mode=self.mode, antialias=smooth)
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
