"""Classifiers by name. Each takes images (B, C, H, W) in [0, 1] and gives logits (B, classes)."""

from collections.abc import Callable

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models as torchvision_models

from autoaug_ray.settings import Settings


class Classifier(Settings):
    """What a study's `model:` may say."""

    name: str = "cnn"
    """cnn, badgan, resnet18, resnet50, wrn-28-10, or torchvision:NAME for any of torchvision's."""
    width: int = Field(16, ge=1, le=4096)
    """Channels of the first block of `cnn`; the others have the widths of their papers."""

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        prefix, _, rest = name.partition(":")
        if name in CLASSIFIERS or (
            prefix == "torchvision"
            and rest in torchvision_models.list_models(module=torchvision_models)
        ):
            return name
        raise ValueError(f"unknown classifier; known: {', '.join(CLASSIFIERS)}, torchvision:NAME")


def build(
    classifier: Classifier, classes: int, mean: Tensor, std: Tensor, *, seed: int
) -> nn.Module:
    """The classifier behind its normalisation; mean and std are (channels,) in [0, 1] units.

    Its initial weights depend on `seed` alone, whatever was drawn before in this process.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if classifier.name in CLASSIFIERS:
            channels = len(mean)
            network = CLASSIFIERS[classifier.name](channels, classes, classifier.width)
        else:
            name = classifier.name.removeprefix("torchvision:")
            network, channels = torchvision_models.get_model(name, num_classes=classes), 3
    return nn.Sequential(Normalise(mean, std, channels), network)


class Normalise(nn.Module):
    """(x - mean) / std; grey images are repeated where a network takes three channels."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", mean.view(1, -1, 1, 1))
        self.register_buffer("std", std.view(1, -1, 1, 1))
        self.channels = channels

    def forward(self, images: Tensor) -> Tensor:
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


class _WideBlock(nn.Module):
    """Pre-activation block; the shortcut is a 1x1 convolution where the shape changes."""

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


def wrn_28_10(channels: int, classes: int, width: int) -> nn.Module:
    """Zagoruyko and Komodakis 2016, no dropout: 36.5 M parameters for 10 classes."""
    layers: list[nn.Module] = [nn.Conv2d(channels, 16, 3, 1, 1, bias=False)]
    inputs = 16
    for outputs, stride in ((160, 1), (320, 2), (640, 2)):
        for i in range(4):
            layers.append(_WideBlock(inputs, outputs, stride if i == 0 else 1))
            inputs = outputs
    head = [nn.BatchNorm2d(640), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, *head, nn.Linear(640, classes))


CLASSIFIERS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "cnn": cnn,
    "badgan": badgan,
    "resnet18": resnet18,
    "resnet50": resnet50,
    "wrn-28-10": wrn_28_10,
}


def parameter_count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
