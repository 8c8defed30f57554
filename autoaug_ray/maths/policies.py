"""Augmentation policies without gradients: RandAugment, TrivialAugment, sub-policies, PBA, AugMix.

A policy is a frozen object, called as `policy(images, generator, strength)` on float images
(B, C, H, W) in [0, 1]. Unlike torchvision's on a batch, it draws ops, magnitudes and signs for
every *sample*. All draws come from `generator`, on the generator's device, and their number depends
on the batch size alone: a CPU generator augments CPU and GPU images alike. Out-of-frame pixels are
black, and warps are nearest-neighbour, unless a policy says otherwise.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Generator, Tensor

from autoaug_ray.maths.image_ops import OPS, apply_ops, cutout
from autoaug_ray.maths.strength import Strength

WARPS = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
FACTORS = ("Brightness", "Color", "Contrast", "Sharpness")


def _check_int(field: str, value: object, low: int, high: float = math.inf) -> None:
    """Raises ValueError unless the value is an integer in low..high."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        allowed = f">= {low}" if high == math.inf else f"in {low}..{high}"
        raise ValueError(f"{field} must be an integer {allowed}, but is {value!r}")


def magnitude_bins(num_bins: int, size: tuple[int, int], wide: bool = False) -> Tensor:
    """(len(OPS), num_bins) magnitudes for images of `size` (H, W), from weakest to strongest.

    torchvision's `_augmentation_space`: of RandAugment and AutoAugment, or of TrivialAugmentWide if
    `wide` (which ignores `size`: its translations are up to 32 pixels for any image). Thresholds
    for Solarize are divided by 255; ops without a magnitude have zeros.
    """
    shear, degrees, factor, bits = (0.99, 135.0, 0.99, 6) if wide else (0.3, 30.0, 0.9, 4)
    height, width = (32.0, 32.0) if wide else (150.0 / 331.0 * size[0], 150.0 / 331.0 * size[1])
    ends = dict(zip(WARPS, (shear, shear, width, height, degrees), strict=True))
    ends |= dict.fromkeys(FACTORS, factor)
    rows = {name: torch.linspace(0.0, end, num_bins) for name, end in ends.items()}
    rows["Posterize"] = 8 - (torch.arange(num_bins) / ((num_bins - 1) / bits)).round()
    rows["Solarize"] = torch.linspace(255.0, 0.0, num_bins) / 255
    return torch.stack([rows.get(name, torch.zeros(num_bins)) for name in OPS])


def standard_bins(num_bins: int, size: tuple[int, int]) -> Tensor:
    """(len(OPS), num_bins) magnitudes of the space "standard" in the code of automl/trivialaugment.

    EntAugment's code (Jackbrocp/EntAugment) has it. Level m, of M = num_bins - 1 at most, is a
    shear of 0.3 m / M; int(30 m / M) degrees; int(10 m / M) pixels of 32 (in proportion for other
    sizes, and then truncated); 4 - int(4 m / M) bits; a threshold of (256 - int(256 m / M)) / 255;
    a factor of 0.1 + 1.8 m / M. Not every op is stronger at a higher level: factors change nothing
    at M / 2, and images are darkest and greyest at 0. At M, 0 bits leave a black image, as they did
    with Pillow until it refused them.
    """
    level, top = torch.arange(num_bins), num_bins - 1
    share = level / top
    rows = dict.fromkeys(("ShearX", "ShearY"), 0.3 * share)
    rows |= dict.fromkeys(FACTORS, 1.8 * share - 0.9)
    rows["TranslateX"] = (10 * level // top) * (size[1] / 32)
    rows["TranslateY"] = (10 * level // top) * (size[0] / 32)
    rows["Rotate"] = (30 * level // top).float()
    rows["Posterize"] = (4 - 4 * level // top).float()
    rows["Solarize"] = (256 - 256 * level // top) / 255
    return torch.stack([rows.get(name, torch.zeros(num_bins)) for name in OPS])


def _draw(n: int, images: Tensor, generator: Generator) -> Tensor:
    """(B,) whole numbers, uniform over 0..n - 1."""
    return torch.randint(n, (len(images),), generator=generator, device=generator.device)


def with_random_sign(
    op: Tensor,  # (B,) on the generator's device, as is `magnitude` (B,)
    magnitude: Tensor,
    generator: Generator,
    two_way: tuple[str, ...] = WARPS + FACTORS,
) -> Tensor:
    """(B,): the magnitudes, those of ops in `two_way` with a sign that a fair coin flips."""
    flips = torch.tensor([name in two_way for name in OPS], device=op.device)[op]
    flips &= torch.randint(2, op.shape, generator=generator, device=generator.device) == 1
    return torch.where(flips, -magnitude, magnitude)


def magnitude_between(bins: Tensor, op: Tensor, level: Tensor) -> Tensor:
    """(B,) magnitudes of ops (B,) at real levels (B,): interpolated between two of the `bins`.

    With the two bins of `magnitude_bins(2, size)`, a level is a share in [0, 1] of the range.
    Differentiable in the level.
    """
    low = level.detach().long().clamp_max(bins.shape[1] - 2)
    return torch.lerp(bins[op, low], bins[op, low + 1], level - low)


def _apply(
    images: Tensor,
    op: Tensor,  # (B,) on the generator's device, as is `magnitude` (B,)
    magnitude: Tensor,
    generator: Generator,
    strength: Strength | None,
    two_way: tuple[str, ...] = WARPS + FACTORS,
) -> Tensor:
    """Apply the ops, those in `two_way` with a magnitude whose sign a fair coin flips."""
    magnitude = with_random_sign(op, magnitude, generator, two_way)
    return apply_ops(images, op.to(images.device), magnitude.to(images.device), strength)


@final
@dataclass(frozen=True)
class RandAugment:
    """RandAugment (arxiv.org/abs/1909.13719) as in torchvision: `num_ops` ops of one magnitude.

    Each is drawn uniformly, with replacement, from the 14 ops of OPS without Invert; signs by a
    fair coin. `magnitude` is a bin, 0..num_bins - 1, of `magnitude_bins`.
    """

    num_ops: int = 2
    magnitude: int = 9
    num_bins: int = 31

    def __post_init__(self) -> None:
        _check_int("num_ops", self.num_ops, 0)
        _check_int("num_bins", self.num_bins, 2)
        _check_int("magnitude", self.magnitude, 0, self.num_bins - 1)

    def __call__(
        self, images: Tensor, generator: Generator, strength: Strength | None = None
    ) -> Tensor:
        bins = magnitude_bins(self.num_bins, (images.shape[2], images.shape[3]))
        level = bins[:, self.magnitude].to(generator.device)
        for _ in range(self.num_ops):
            op = _draw(len(OPS) - 1, images, generator)  # Invert is the last
            images = _apply(images, op, level[op], generator, strength)
        return images


@final
@dataclass(frozen=True)
class TrivialAugmentWide:
    """TrivialAugment, wide space (arxiv.org/abs/2103.10158) as in torchvision: one op per sample.

    The op is uniform over OPS without Invert, its magnitude uniform over the bins, its sign fair.
    """

    num_bins: int = 31

    def __post_init__(self) -> None:
        _check_int("num_bins", self.num_bins, 2)

    def __call__(
        self, images: Tensor, generator: Generator, strength: Strength | None = None
    ) -> Tensor:
        bins = magnitude_bins(self.num_bins, (images.shape[2], images.shape[3]), wide=True)
        op = _draw(len(OPS) - 1, images, generator)
        magnitude = bins.to(generator.device)[op, _draw(self.num_bins, images, generator)]
        return _apply(images, op, magnitude, generator, strength)


@final
@dataclass(frozen=True, eq=False)
class OneOp:
    """One op per sample, uniform over OPS without Invert, at a level that the sample may bring.

    `level` (B,), on any device, holds bins, 0..num_bins - 1, of the `space`: `standard_bins`, whose
    warps alone have a sign, or `magnitude_bins`, whose factors have one, too. None: uniform over
    the bins, which is TrivialAugment in that space; op, level and sign are drawn in its order.
    """

    space: Literal["standard", "torchvision"]
    num_bins: int
    level: Tensor | None = None

    def __call__(
        self, images: Tensor, generator: Generator, strength: Strength | None = None
    ) -> Tensor:
        standard, size = self.space == "standard", (images.shape[2], images.shape[3])
        bins = (standard_bins if standard else magnitude_bins)(self.num_bins, size)
        op = _draw(len(OPS) - 1, images, generator)
        level = self.level
        if level is None:
            level = _draw(self.num_bins, images, generator)
        magnitude = bins.to(generator.device)[op, level.to(op)]
        signed = WARPS if standard else WARPS + FACTORS
        return _apply(images, op, magnitude, generator, strength, signed)


def _of_own_op(rows: dict[str, Tensor], op: Tensor) -> Tensor:
    """(n,) the magnitude of each sample's op, from those (n,) that every op would have."""
    none = torch.zeros(op.shape, device=op.device)
    return torch.stack([rows.get(name, none) for name in OPS]).gather(0, op[None])[0]


def _indices(names: tuple[str, ...], device: torch.device) -> Tensor:
    """(len(names),) where the ops stand in OPS; Identity for those of another kind."""
    return torch.tensor([OPS.index(n) if n in OPS else 0 for n in names], device=device)


TIMM_OPS: tuple[str, ...] = (*OPS[1:], "SolarizeAdd")


@final
@dataclass(frozen=True)
class TimmRandAugment:
    """timm's RandAugment, `rand-m{magnitude}-mstd0.5-inc1`: two of 15 ops, each by even chance.

    A magnitude is normal around `magnitude`, 0..10, with standard deviation 0.5, and anew for every
    op; at 10, ops have timm's increasing ranges: 30 degrees, a shear of 0.3, 45 % of a side, 0.9
    around a factor of 1, 4 to 0 bits, all above threshold 0 inverted, and SolarizeAdd, which adds
    110 to levels below 128. Warps are bilinear and frames black; timm draws bilinear or bicubic,
    and paints frames in ImageNet's mean colour.
    """

    magnitude: float = 9

    def __call__(
        self, images: Tensor, generator: Generator, strength: Strength | None = None
    ) -> Tensor:
        n, device = len(images), generator.device
        for _ in range(2):
            drawn = _draw(len(TIMM_OPS), images, generator)
            fires = torch.rand(n, generator=generator, device=device) < 0.5
            op = torch.where(fires, _indices(TIMM_OPS, device)[drawn], OPS.index("Identity"))
            noise = 0.5 * torch.randn(n, generator=generator, device=device)
            share = (self.magnitude + noise).clamp(0, 10) / 10
            magnitude = _of_own_op(_timm_rows(share, (images.shape[2], images.shape[3])), op)
            magnitude = with_random_sign(op, magnitude, generator)
            op, magnitude = op.to(images.device), magnitude.to(images.device)
            images = apply_ops(images, op, magnitude, strength, mode="bilinear")
            adds = fires & (drawn == TIMM_OPS.index("SolarizeAdd"))
            added = torch.where(adds, (110 * share).trunc() / 255, 0.0).to(images.device)
            before, dark = images, images < 127.5 / 255
            images = torch.where(dark, images + added[:, None, None, None], images)
            if strength is not None:
                strength.color(before, images)
        return images


def _timm_rows(share: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
    """Magnitudes (n,) of every op of timm's increasing space at a `share` (n,) of 10."""
    rows = dict.fromkeys(("ShearX", "ShearY"), 0.3 * share) | dict.fromkeys(FACTORS, 0.9 * share)
    rows |= {"TranslateX": 0.45 * size[1] * share, "TranslateY": 0.45 * size[0] * share}
    rows |= {"Rotate": 30 * share, "Posterize": 4 - (4 * share).trunc()}
    return rows | {"Solarize": (256 - (256 * share).trunc()) / 255}


AUGMIX_OPS: tuple[str, ...] = (
    "AutoContrast",
    "Equalize",
    "Posterize",
    "Rotate",
    "Solarize",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
)


@final
@dataclass(frozen=True)
class AugMix:
    """AugMix (arxiv.org/abs/1912.02781), as in google-research/augmix, augmentations.py.

    `chains` chains of 1 to 3 ops (`depth`: of so many) are mixed with Dirichlet(1, ..., 1) weights,
    and their mixture with the image by a uniform share. A level is uniform from 0.1 to `severity`,
    of 10: there a shear is 0.3, a rotation 30 degrees, a translation a third of a side, both in
    whole numbers, 4 - 4 bits are kept, and all above threshold 0 is inverted. Warps are bilinear.
    Ops that would overlap with ImageNet-C's corruptions are left out, as there by default.
    A mixture has no displacement: all of its change is told as one of colour.
    """

    severity: float = 3
    chains: int = 3
    depth: int | None = None

    def __call__(
        self, images: Tensor, generator: Generator, strength: Strength | None = None
    ) -> Tensor:
        n, device = len(images), generator.device
        mixture = torch._sample_dirichlet(torch.ones(n, self.chains, device=device), generator)
        share = torch.rand(n, generator=generator, device=device).to(images.device)
        x = images.repeat(self.chains, 1, 1, 1)  # chain by chain
        longest = self.depth or 3
        shortest = self.depth or 1
        depth = shortest + _draw(longest - shortest + 1, x, generator)
        for slot in range(longest):
            op = _indices(AUGMIX_OPS, device)[_draw(len(AUGMIX_OPS), x, generator)]
            op = torch.where(slot < depth, op, OPS.index("Identity"))
            level = torch.rand(len(x), generator=generator, device=device)
            rows = _augmix_rows(0.1 + (self.severity - 0.1) * level, (x.shape[2], x.shape[3]))
            magnitude = with_random_sign(op, _of_own_op(rows, op), generator, WARPS)
            x = apply_ops(x, op.to(x.device), magnitude.to(x.device), mode="bilinear")
        weights = (mixture.T.to(images) * share)[:, :, None, None, None]
        augmented = (weights * x.view(self.chains, *images.shape)).sum(0)
        out = (1 - share[:, None, None, None]) * images + augmented
        if strength is not None:
            strength.color(images, out)
        return out


def _augmix_rows(level: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
    """Magnitudes (n,) of every op of AugMix's at levels (n,) in 0..10."""
    share = level / 10
    return {
        "Posterize": 4 - (4 * share).trunc(),
        "Rotate": (30 * share).trunc(),
        "Solarize": (256 - (256 * share).trunc()) / 255,
        "ShearX": 0.3 * share,
        "ShearY": 0.3 * share,
        "TranslateX": (share * size[1] / 3).trunc(),
        "TranslateY": (share * size[0] / 3).trunc(),
    }


Step = tuple[str, float, float | None]
"""Op, probability, level (None: the op has no strength)."""
SubPolicy = tuple[Step, ...]


@final
@dataclass(frozen=True)
class SubPolicies:
    """One sub-policy per sample, as in AutoAugment (arxiv.org/abs/1805.09501) and its followers.

    A sub-policy is any number of steps, tried one after the other; signs are fair, as in
    torchvision. `weights` are its chances to be drawn, in proportion; empty: all alike. Levels are
    bins of `num_bins`, or lie between two of them: with the default of two, a level is a share in
    [0, 1] of the range. AutoAugment's published tables have 10.
    """

    table: tuple[SubPolicy, ...]
    weights: tuple[float, ...] = ()
    num_bins: int = 2

    def __post_init__(self) -> None:
        _check_int("num_bins", self.num_bins, 2)
        if not self.table:
            raise ValueError("table must hold at least one sub-policy, but is empty")
        for name, probability, level in (step for steps in self.table for step in steps):
            if name not in OPS:
                raise ValueError(f"op must be one of {', '.join(OPS)}, but is {name!r}")
            if not 0 <= probability <= 1:
                raise ValueError(f"probability of {name} must be in 0..1, but is {probability}")
            if level is not None and not 0 <= level <= self.num_bins - 1:
                top = self.num_bins - 1
                raise ValueError(f"level of {name} must be in 0..{top}, but is {level}")
        chances = self.weights
        if chances and (len(chances) != len(self.table) or min(chances) < 0 or not any(chances)):
            raise ValueError(
                f"weights must be {len(self.table)} numbers >= 0, one per sub-policy, not all 0, "
                f"but are {chances}"
            )

    def __call__(
        self, images: Tensor, generator: Generator, strength: Strength | None = None
    ) -> Tensor:
        device = generator.device
        bins = magnitude_bins(self.num_bins, (images.shape[2], images.shape[3])).to(device)
        drawn = self._choose(images, generator)
        for step in itertools.zip_longest(*self.table, fillvalue=("Identity", 0.0, None)):
            names, probabilities, levels = zip(*step, strict=True)
            op = torch.tensor([OPS.index(name) for name in names], device=device)[drawn]
            probability = torch.tensor(probabilities, device=device)[drawn]
            level = torch.tensor([float(level or 0) for level in levels], device=device)[drawn]
            fires = torch.rand(op.shape, generator=generator, device=device) < probability
            op = torch.where(fires, op, OPS.index("Identity"))
            magnitude = magnitude_between(bins, op, level)
            images = _apply(images, op, magnitude, generator, strength)
        return images

    def _choose(self, images: Tensor, generator: Generator) -> Tensor:
        """(B,) the row of the table that each sample draws."""
        if not self.weights:
            return _draw(len(self.table), images, generator)
        chances = torch.tensor(self.weights, device=generator.device)
        return torch.multinomial(chances, len(images), replacement=True, generator=generator)


PBA_OPS: tuple[str, ...] = (
    "AutoContrast",
    "Equalize",
    "Invert",
    "Rotate",
    "Posterize",
    "Solarize",
    "Color",
    "Contrast",
    "Brightness",
    "Sharpness",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Cutout",
)


@final
@dataclass(frozen=True)
class PopulationPolicy:
    """One policy of Population Based Augmentation (arxiv.org/abs/1905.05393).

    `policy` is 60 integers as in arcelien/pba: (probability 0..10, magnitude 0..9) for each of
    PBA_OPS, and all once more. Per sample the 30 entries are shuffled and tried in turn, each
    firing with probability / 10, until `count` have fired, count = 0, 1, 2 with chance .2, .3, .5.

    Magnitude m, as there: Rotate 3m degrees, Shear 0.03m, TranslateX/Y m pixels of 32 (in
    proportion for other sizes, and then truncated), with fair signs; Posterize 4 - int(0.4m) bits;
    Solarize threshold (256 - int(25.6m)) / 255; factor 0.1 + 0.18m for Color, Contrast, Brightness
    and Sharpness; Cutout int(2m) pixels of 32 at a uniform place. Here Cutout is mid-grey and what
    a warp leaves open black, as for the other policies; there both are the data set's mean colour.
    The cutout that PBA's training adds after the policy is not part of it.
    """

    policy: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "policy", tuple(self.policy))  # YAML and PBT bring lists
        expected = 4 * len(PBA_OPS)
        if len(self.policy) != expected:
            raise ValueError(f"policy must have {expected} integers, but has {len(self.policy)}")
        for i, value in enumerate(self.policy):
            _check_int(f"policy[{i}]", value, 0, 10 if i % 2 == 0 else 9)

    def __call__(
        self, images: Tensor, generator: Generator, strength: Strength | None = None
    ) -> Tensor:
        device, size = generator.device, (images.shape[2], images.shape[3])
        op, probability, magnitude = self.entries(size)
        chosen = self._choose(len(images), probability.to(device), generator)
        for slot in chosen.unbind(1):
            op_here, magnitude_here = op.to(device)[slot], magnitude.to(device)[slot]
            # Factors get no sign: 0.1 to 1.72 already lies on both sides of 1.
            images = _apply(images, op_here, magnitude_here, generator, strength, WARPS)
            is_cutout = slot % len(PBA_OPS) == PBA_OPS.index("Cutout")
            side = torch.where(is_cutout, magnitude_here, 0.0).long()
            row, column = _draw(size[0], images, generator), _draw(size[1], images, generator)
            before = images
            images = cutout(images, *(v.to(images.device) for v in (row, column, side)))
            if strength is not None:
                strength.color(before, images)
        return images

    def entries(self, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """Op index, probability and magnitude, (31,) each; the last entry does nothing."""
        # For apply_ops, Cutout is Identity: it needs a place besides a magnitude.
        names = [*PBA_OPS, *PBA_OPS, "Identity"]
        op = [OPS.index(name) if name in OPS else OPS.index("Identity") for name in names]
        levels = [*self.policy[1::2], 0]
        magnitude = [_pba_magnitude(*entry, size) for entry in zip(names, levels, strict=True)]
        probability = [value / 10 for value in self.policy[::2]]
        return torch.tensor(op), torch.tensor([*probability, 0.0]), torch.tensor(magnitude)

    @staticmethod
    def _choose(batch: int, probability: Tensor, generator: Generator) -> Tensor:
        """(B, 2) entries to apply, in order; the idle last entry where fewer than two fire."""
        idle, device = len(probability) - 1, generator.device
        order = torch.rand(batch, idle, generator=generator, device=device).argsort(dim=1)
        fires = torch.rand(order.shape, generator=generator, device=device) < probability[order]
        # count: 0 below .2, 1 below .5, else 2.
        dice = torch.rand(batch, generator=generator, device=device)
        count = (dice >= 0.2).long() + (dice >= 0.5).long()
        turn = torch.where(fires, fires.cumsum(dim=1), 0)  # k for the k-th to fire, else 0
        chosen = []
        for k in (1, 2):
            hit = turn == k
            found = hit.any(dim=1) & (count >= k)
            entry = order.gather(1, hit.long().argmax(dim=1, keepdim=True))[:, 0]
            chosen.append(torch.where(found, entry, idle))
        return torch.stack(chosen, dim=1)


def _pba_magnitude(name: str, level: int, size: tuple[int, int]) -> float:
    """PBA's magnitude 0..9 in the unit of `apply_ops` (Cutout: its side in pixels)."""
    height, width = size
    scales = {
        "Rotate": 3.0 * level,
        "Posterize": 4.0 - level * 4 // 10,
        "Solarize": (256 - level * 256 // 10) / 255,
        "ShearX": 0.03 * level,
        "ShearY": 0.03 * level,
        "TranslateX": level * width / 32,
        "TranslateY": level * height / 32,
        "Cutout": 2.0 * level * min(height, width) / 32,
    }
    return (scales | dict.fromkeys(FACTORS, 0.18 * level - 0.9)).get(name, 0.0)
