"""Augmentation networks: noise in, bounded transformation parameters out, and their application.

Notation: z (B, Z) noise, p (B, P) parameters, one row per sample. The network does not see the
image (online bilevel paper, section 3.2). Parameters by name, with their unit; zero is the
identity for all of them:

    translate_x, translate_y    offset entries of the 2x3 matrix, normalised: 1 is half an image
    scale_x, shear_x, shear_y, scale_y
                                residuals of the linear entries a11, a12, a21, a22 of that matrix
    brightness, contrast, saturation
                                factor - 1
    hue                         turns of the colour circle
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from autoaug_ray.maths import image_ops
from autoaug_ray.maths.strength import Strength

Group = Literal["translation", "affine", "color", "translation+color", "affine+color"]
Size = Literal["small", "medium", "large"]

TRANSLATION = ("translate_x", "translate_y")
AFFINE = ("scale_x", "shear_x", "translate_x", "shear_y", "scale_y", "translate_y")
COLOR = ("brightness", "contrast", "saturation", "hue")

BOUNDS: Mapping[str, float] = {
    **dict.fromkeys(TRANSLATION, 1.0),
    **dict.fromkeys(("scale_x", "shear_x", "shear_y", "scale_y"), 0.75),
    **dict.fromkeys(("brightness", "contrast", "saturation"), 1.0),
    "hue": 0.5,
}
"""Largest absolute value of each parameter: half an image, a factor in [0, 2], any hue."""


def parameter_names(group: Group, channels: int) -> tuple[str, ...]:
    """Grey images have no saturation and no hue: those would get no gradient."""
    parts = {"translation": TRANSLATION, "affine": AFFINE}
    color = COLOR if channels == 3 else COLOR[:2]
    return tuple(n for part in group.split("+") for n in parts.get(part, color))


def transform(
    images: Tensor,  # (B, C, H, W) in [0, 1]
    parameters: Tensor,  # (B, P)
    names: Sequence[str],
    strength: Strength | None = None,
) -> Tensor:
    """Warp, then brightness, contrast, saturation and hue in this order; differentiable."""
    p = dict(zip(names, parameters.unbind(1), strict=True))
    x = images
    if geometric := [n for n in AFFINE if n in p]:
        entries = {n: p[n] for n in geometric}
        zero = torch.zeros_like(parameters[:, 0])
        residual = torch.stack([entries.get(n, zero) for n in AFFINE], dim=1).view(-1, 2, 3)
        x = image_ops.warp(x, image_ops.identity_matrix(len(x), x) + residual, strength=strength)
    for name in COLOR:
        if name in p:
            before = x
            adjust = getattr(image_ops, f"adjust_{name}")
            x = adjust(x, p[name] if name == "hue" else 1 + p[name])
            if strength is not None:
                strength.color(before, x)
    return x


class Augmenter(nn.Module):
    """An MLP of the paper's three sizes, with a bounded output and a known initial spread.

    `symmetric` makes p(-z) = -p(z) by construction: the distribution of p has mean zero whatever
    the weights are. A free mean drifts until the images leave the frame, or dies with the weight
    decay, and nothing is learned; see the shift studies.

    Each output has a gain of its own, so that one parameter's spread can grow without the others,
    and is scaled such that its initial standard deviation is `spread` times its bound.
    """

    scale: Tensor
    bounds: Tensor

    def __init__(
        self,
        names: Sequence[str],
        size: Size = "small",
        *,
        symmetric: bool = True,
        spread: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.names, self.symmetric = tuple(names), symmetric
        n = len(self.names)
        self.noise_size, hidden = {
            "small": (n, [n, 10 * n]),
            "medium": (100, [64, 32]),
            "large": (100, [512, 1024, 124, 512]),
        }[size]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers: list[nn.Module] = []
            inputs = self.noise_size
            for width in hidden:
                layers += [nn.Linear(inputs, width), nn.Tanh()]
                inputs = width
            # A last bias would cancel in p(z) - p(-z) and never get a gradient.
            self.network = nn.Sequential(*layers, nn.Linear(inputs, n, bias=not symmetric))
            self.log_gain = nn.Parameter(torch.zeros(n))
            self.register_buffer("bounds", torch.tensor([BOUNDS[k] for k in self.names]))
            self.register_buffer("scale", torch.ones(n))
            with torch.no_grad():
                self.scale /= self._raw(2 * torch.rand(4096, self.noise_size) - 1).std(0) / spread

    def _raw(self, z: Tensor) -> Tensor:
        if not self.symmetric:
            out: Tensor = self.network(z)
            return out
        both = self.network(torch.cat([z, -z]))
        return (both[: len(z)] - both[len(z) :]) / 2

    def forward(self, z: Tensor) -> Tensor:
        """Noise (B, Z) in [-1, 1] -> parameters (B, P) within +-bounds."""
        p: Tensor = self.bounds * torch.tanh(self.log_gain.exp() * self.scale * self._raw(z))
        return p

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """n rows of uniform noise, (n, Z)."""
        device = self.bounds.device
        z = torch.rand(n, self.noise_size, generator=generator, device=device)
        return 2 * z - 1

    @torch.no_grad()
    def spreads(self, *, seed: int, n: int = 2048) -> dict[str, float]:
        """Mean and standard deviation over n samples of every parameter: what was learned."""
        generator = torch.Generator(self.bounds.device).manual_seed(seed)
        p = self(self.draw(n, generator))
        return {
            f"{kind}/{name}": value
            for kind, values in (("mean", p.mean(0)), ("std", p.std(0)))
            for name, value in zip(self.names, values.tolist(), strict=True)
        }
