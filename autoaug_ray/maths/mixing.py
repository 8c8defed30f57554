"""Mixup and CutMix: two images of a batch become one, with the labels of both in proportion."""

from typing import NamedTuple

import torch
from torch import Tensor

from autoaug_ray.maths.image_ops import Box, inside


class Chances(NamedTuple):
    """How images are mixed."""

    mixed: float
    """Chance that an image is mixed at all."""
    cutmix: float
    """Chance that it is then by CutMix, and not by mixup."""
    mixup_alpha: float
    """By mixup, an image keeps a share Beta(alpha, alpha)."""
    cutmix_alpha: float
    """By CutMix, an image keeps a share Beta(alpha, alpha) of its area."""


class Drawn(NamedTuple):
    """What is drawn for a batch of B images."""

    partner: Tensor
    """(B,) long: the image that is mixed in."""
    kept: Tensor
    """(B,) in [0, 1]: mixup's share of the image itself; 1 where CutMix is drawn."""
    box: Box
    """(B, 4): the partner's pixels that CutMix pastes, which may reach beyond the border; nothing
    where mixup is drawn."""


def draw(
    n: int,
    size: tuple[int, int],  # (H, W)
    chances: Chances,
    noise: torch.Generator,
    each: bool = True,
) -> Drawn:
    """Partners by a permutation of the n images; and for `each` of them, or once for all, by which
    of the two they are mixed, with which share and at which place.

    A box has the image's shape, the square root of the partner's share of its sides, each an even
    number of pixels, and a uniform centre (Yun et al. 2019, eq. 2 and their rand_bbox).
    """
    device, many = noise.device, n if each else 1
    partner = torch.randperm(n, generator=noise, device=device)
    is_mixed, is_cutmix = torch.rand(2, many, generator=noise, device=device)
    cuts = is_cutmix < chances.cutmix
    alpha = torch.where(cuts, chances.cutmix_alpha, chances.mixup_alpha)
    # torch.distributions takes no generator. In double precision: with a small alpha, both of the
    # gamma variates may be too small.
    both = alpha.double()[:, None].repeat(1, 2)
    kept = torch._sample_dirichlet(both, noise)[:, 0].float()
    kept = torch.where(is_mixed < chances.mixed, kept, 1.0)
    sides = torch.tensor(size, device=device) * (1 - kept).sqrt()[:, None]
    half = torch.where(cuts[:, None], sides.long() // 2, 0)
    centre = [torch.randint(side, (many,), generator=noise, device=device) for side in size]
    box = torch.cat([torch.stack(centre, dim=1) - half, 2 * half], dim=1)
    return Drawn(partner, torch.where(cuts, 1.0, kept).expand(n), box.expand(n, 4))


def mix(images: Tensor, drawn: Drawn) -> tuple[Tensor, Tensor]:
    """Mixed images (B, C, H, W), and the share (B,) of each that is its own, as its label's is.

    CutMix's share is that of the pixels which are left, the box being cut at the border.
    """
    partner, kept, box = drawn
    pasted = inside(box, (images.shape[2], images.shape[3]))
    others, share = images[partner], kept[:, None, None, None]
    blend = share * images + (1 - share) * others
    out = torch.where(pasted[:, None], others, blend)
    return out, kept - pasted.float().mean(dim=(1, 2))
