"""Augmentation networks: noise in, bounded transformation parameters out, and their application.

Notation: z (B, Z) noise, p (B, P) parameters, one row per sample. The network does not see the
image (online bilevel paper, section 3.2). Parameters by name, with their unit; zero is the
identity for all of them:

    translate_x, translate_y    offset entries of the 2x3 matrix, normalised: 1 is half an image
    scale_x, shear_x, shear_y, scale_y
                                residuals of the linear entries a11, a12, a21, a22 of that matrix
    rotate                      degrees, clockwise
    zoom                        natural logarithm of the factor
    brightness, contrast, saturation
                                factor - 1
    hue                         turns of the colour circle
"""

import abc
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from autoaug_ray.maths import image_ops
from autoaug_ray.maths.strength import Strength

Group = Literal[
    "translation", "similarity", "affine", "color",
    "translation+color", "similarity+color", "affine+color",
]  # fmt: skip
MLP = Literal["small", "medium", "large"]
Size = Literal["scale", MLP]

TRANSLATION = ("translate_x", "translate_y")
AFFINE = ("scale_x", "shear_x", "translate_x", "shear_y", "scale_y", "translate_y")
SIMILARITY = ("rotate", "zoom", "translate_x", "translate_y")
COLOR = ("brightness", "contrast", "saturation", "hue")

BOUNDS: Mapping[str, float] = {
    **dict.fromkeys(TRANSLATION, 1.0),
    **dict.fromkeys(("scale_x", "shear_x", "shear_y", "scale_y"), 0.75),
    "rotate": 90.0,
    "zoom": 0.7,
    **dict.fromkeys(("brightness", "contrast", "saturation"), 1.0),
    "hue": 0.5,
}
"""Largest absolute value of each parameter: half an image, a zoom of 2, a factor of 2, any hue."""


def parameter_names(group: Group, channels: int) -> tuple[str, ...]:
    """The parameters of a group. Grey images (one channel) have neither saturation nor hue, which
    would get no gradient."""
    parts = {"translation": TRANSLATION, "similarity": SIMILARITY, "affine": AFFINE}
    color = COLOR if channels == 3 else COLOR[:2]
    return tuple(n for part in group.split("+") for n in parts.get(part, color))


def transform(
    images: Tensor,  # (B, C, H, W) in [0, 1]
    parameters: Tensor,  # (B, P)
    names: Sequence[str],
    strength: Strength | None = None,
) -> Tensor:
    """Warp, then adjust brightness, contrast, saturation and hue, in this order.

    Differentiable in the images and the parameters. `strength`, if given, is told what was done.
    """
    p = dict(zip(names, parameters.unbind(1), strict=True))
    x = images
    if any(name in p for name in (*AFFINE, *SIMILARITY)):
        x = image_ops.warp(x, _matrix(p, x), strength=strength)
    for name in COLOR:
        if name in p:
            before = x
            adjust = getattr(image_ops, f"adjust_{name}")
            x = adjust(x, p[name] if name == "hue" else 1 + p[name])
            if strength is not None:
                strength.color(before, x)
    return x


def _matrix(p: Mapping[str, Tensor], images: Tensor) -> Tensor:
    """(B, 2, 3), normalised output -> input: (identity + residuals) times rotation and zoom."""
    zero = images.new_zeros(len(images))
    entries = [p.get(name, zero) for name in AFFINE]
    matrix = image_ops.identity_matrix(len(images), images)
    matrix = matrix + torch.stack(entries, dim=1).view(-1, 2, 3)
    if "rotate" in p or "zoom" in p:
        around_centre = image_ops.affine_matrix(
            angle=p.get("rotate", zero),
            translate=zero[:, None].expand(-1, 2),
            scale=p.get("zoom", zero).exp(),
            shear=zero[:, None].expand(-1, 2),
            size=(images.shape[-2], images.shape[-1]),
        )
        linear = matrix[:, :, :2] @ around_centre[:, :, :2]
        matrix = torch.cat([linear, matrix[:, :, 2:]], dim=2)
    return matrix


class AbstractAugmenter(nn.Module, abc.ABC):
    """Noise (B, Z) in [-1, 1] -> parameters (B, P) -> augmented images."""

    def __init__(self, names: Sequence[str], noise_size: int) -> None:
        super().__init__()
        self.names, self.noise_size = tuple(names), noise_size

    @abc.abstractmethod
    def forward(self, z: Tensor) -> Tensor: ...

    def apply_to(
        self, images: Tensor, parameters: Tensor, strength: Strength | None = None
    ) -> Tensor:
        """Images (B, C, H, W) transformed by parameters (B, P); see `transform`."""
        return transform(images, parameters, self.names, strength)

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """n rows of uniform noise in [-1, 1], (n, Z)."""
        device = next(self.parameters()).device
        return 2 * torch.rand(n, self.noise_size, generator=generator, device=device) - 1

    @torch.no_grad()
    def spreads(self, *, seed: int, n: int = 2048) -> dict[str, float]:
        """What was learned: `mean/NAME` and `std/NAME` of every parameter, over n samples."""
        generator = torch.Generator(next(self.parameters()).device).manual_seed(seed)
        p = self(self.draw(n, generator))
        return {
            f"{kind}/{name}": value
            for kind, values in (("mean", p.mean(0)), ("std", p.std(0)))
            for name, value in zip(self.names, values.tolist(), strict=True)
        }


def mlp_sizes(size: MLP, n: int) -> tuple[int, tuple[int, ...]]:
    """The noise's size and the widths of the hidden layers of the paper's MLPs for n parameters
    (online bilevel paper, section 4.2)."""
    if size == "small":
        return n, (n, 10 * n)
    return (100, (64, 32)) if size == "medium" else (100, (512, 1024, 124, 512))


class Augmenter(AbstractAugmenter):
    """Noise to parameters, with a bounded output and a known initial distribution.

    `scale` is no network: each parameter has a noise of its own and learns its spread alone.
    `small`, `medium` and `large` are the paper's MLPs. Their initial outputs would be correlated,
    in the small one so strongly for some seeds that a translation covers little more than a
    diagonal; they are whitened, and every output has a gain of its own.

    `symmetric` makes p(-z) = -p(z) by construction: the distribution of p has mean zero whatever
    the weights are. A free mean drifts until the images leave the frame, or dies with the weight
    decay, and nothing is learned; see the shift studies. It has no effect on `scale`, which is
    symmetric anyway.

    Initially, p / bounds has standard deviations of `spread` and no correlations.
    """

    whiten: Tensor
    bounds: Tensor

    def __init__(
        self,
        names: Sequence[str],
        size: Size = "scale",
        *,
        symmetric: bool = True,
        spread: float = 0.1,
        seed: int = 0,
    ) -> None:
        n = len(names)
        inputs, hidden = (n, ()) if size == "scale" else mlp_sizes(size, n)
        super().__init__(names, noise_size=inputs)
        self.symmetric = symmetric
        self.network: nn.Module = nn.Identity()
        self.log_gain = nn.Parameter(torch.zeros(n))
        self.register_buffer("bounds", torch.tensor([BOUNDS[k] for k in self.names]))
        self.register_buffer("whiten", torch.eye(n))
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            if hidden:
                layers: list[nn.Module] = []
                for width in hidden:
                    layers += [nn.Linear(inputs, width), nn.Tanh()]
                    inputs = width
                # A last bias would cancel in p(z) - p(-z) and never get a gradient.
                layers.append(nn.Linear(inputs, n, bias=not symmetric))
                self.network = nn.Sequential(*layers)
            covariance = torch.cov(self._raw(2 * torch.rand(8192, self.noise_size) - 1).T)
            # Row vectors: cov(raw @ whiten) = whiten.T @ cov(raw) @ whiten = spread^2 I.
            root = torch.linalg.cholesky(covariance.view(n, n))
            self.whiten.copy_(spread * torch.linalg.inv(root).T)

    def _raw(self, z: Tensor) -> Tensor:
        """The network's outputs (B, P) for noise (B, Z); odd in z if symmetric."""
        if not self.symmetric:
            out: Tensor = self.network(z)
            return out
        plus, minus = self.network(torch.cat([z, -z])).split(len(z))
        odd: Tensor = (plus - minus) / 2
        return odd

    @torch.no_grad()
    def decay(self, rate: float) -> None:
        """One step of weight decay on the gains."""
        self.log_gain.add_(math.log1p(-min(rate, 0.99)))

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """n rows of noise of which every other row mirrors the one before it.

        Such antithetic noise has a mean of zero in small batches too (of even size), and makes a
        hypergradient less noisy.
        """
        z = super().draw((n + 1) // 2, generator)
        return torch.stack([z, -z], dim=1).flatten(0, 1)[:n]

    def forward(self, z: Tensor) -> Tensor:
        """Noise (B, Z) in [-1, 1] -> parameters (B, P) within +-bounds."""
        p: Tensor = self.bounds * torch.tanh(self.log_gain.exp() * (self._raw(z) @ self.whiten))
        return p


class PublishedAugmenter(AbstractAugmenter):
    """The augmenter of the bilevel paper's text: a plain MLP, of which every weight is learned.

    Independent noise goes in, and what comes out is the parameters (section 3.2 and 4.2), with
    PyTorch's initial weights: no symmetry, no whitening, no gain. Two things the text leaves open
    are as in the public release. The hidden activation is ReLU. The outputs go through tanh for
    translation and wherever colour is learned: an entry of the matrix is within +-1 there, and a
    colour within its bound. They are raw residuals of the matrix for affine alone, like those of
    the spatial transformer whose "transformation model" section 3.2 takes over. The release's
    dropout is left out: the text knows of no other randomness than the noise vector.
    """

    bounds: Tensor

    def __init__(self, names: Sequence[str], size: MLP = "small", *, seed: int = 0) -> None:
        inputs, hidden = mlp_sizes(size, len(names))
        super().__init__(names, noise_size=inputs)
        self.bounded = self.names != AFFINE
        bounds = [BOUNDS[k] if k in COLOR else 1.0 for k in self.names]
        self.register_buffer("bounds", torch.tensor(bounds))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers: list[nn.Module] = []
            for width in hidden:
                layers += [nn.Linear(inputs, width), nn.ReLU()]
                inputs = width
            self.network = nn.Sequential(*layers, nn.Linear(inputs, len(names)))

    def forward(self, z: Tensor) -> Tensor:
        """Noise (B, Z) in [-1, 1] -> parameters (B, P); unbounded for affine alone."""
        raw: Tensor = self.network(z)
        return self.bounds * torch.tanh(raw) if self.bounded else raw
