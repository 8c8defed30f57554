"""The augmenter of the bilevel paper's public release, flaws included: an ablation, not advice.

What differs from `augmenter.Augmenter`, and is known to matter: the mean of the parameters is free,
so it runs away or dies with the weight decay; the affine residual is not bounded; "contrast" adds,
which is a second brightness; hue multiplies, so red never moves and the circle does not close.
"""

import torch
from torch import Tensor, nn

from autoaug_ray.maths import augmenter
from autoaug_ray.maths.strength import Strength

DROPOUT = 0.2


class ReleasedAugmenter(augmenter.AbstractAugmenter):
    """n inputs, layers of n and 10n with dropout 0.2 after both, n outputs.

    The outputs go through tanh for translation and wherever colour is learned, but not for affine
    alone. In the release, dropout is a second source of noise; here its masks are part of z, so
    that the look-ahead and the trainer use the same ones.
    """

    def __init__(self, names: tuple[str, ...], seed: int) -> None:
        n = len(names)
        super().__init__(names, noise_size=n + n + 10 * n)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.first, self.second = nn.Linear(n, n), nn.Linear(n, 10 * n)
            self.last = nn.Linear(10 * n, n)

    def forward(self, z: Tensor) -> Tensor:
        """Noise (B, Z) in [-1, 1], the masks' included -> parameters (B, P)."""
        n = len(self.names)
        z, *masks = z.split([n, n, 10 * n], dim=1)
        h = z
        for layer, mask in zip((self.first, self.second), masks, strict=True):
            kept = (mask > 2 * DROPOUT - 1) / (1 - DROPOUT)
            h = layer(h).relu() * kept
        p: Tensor = self.last(h)
        return p if self.names == augmenter.AFFINE else torch.tanh(p)

    def apply_to(
        self, images: Tensor, parameters: Tensor, strength: Strength | None = None
    ) -> Tensor:
        """Warp like `augmenter.transform`; then brightness x(1 + b), "contrast" x + c, saturation
        s(1 + a) and hue h + h u / 2, all clamped."""
        color = [n for n in self.names if n in augmenter.COLOR]
        geometric = [n for n in self.names if n not in color]
        p = dict(zip(self.names, parameters[:, :, None, None, None].unbind(1), strict=True))
        x = images
        if geometric:
            columns = [self.names.index(n) for n in geometric]
            x = augmenter.transform(x, parameters[:, columns], geometric, strength)
        before = x
        if color:
            x = (x * (1 + p["brightness"])).clamp(0, 1)
            x = (x + p["contrast"]).clamp(0, 1)
        if "hue" in p:
            from kornia.color import hsv_to_rgb, rgb_to_hsv  # slow to import

            h, s, v = rgb_to_hsv(x).split(1, dim=1)
            turn = 2 * torch.pi
            s = (s * (1 + p["saturation"])).clamp(0, 1)
            h = (h + h * p["hue"] / 2).clamp(0, turn)
            x = hsv_to_rgb(torch.cat([h, s, v], dim=1))
        if strength is not None and color:
            strength.color(before, x)
        return x
