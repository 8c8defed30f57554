"""maths/policies.py: torchvision's tables and bins, and the distributions that the papers state."""

import dataclasses

import pytest
import torch
from torch import Generator, Tensor
from torchvision import transforms

from autoaug_ray.maths import policies
from autoaug_ray.maths.image_ops import OPS, apply_ops
from autoaug_ray.maths.policies import (
    PBA_OPS,
    OneOp,
    PopulationPolicy,
    RandAugment,
    SubPolicies,
    TrivialAugmentWide,
    magnitude_between,
    magnitude_bins,
)
from autoaug_ray.maths.strength import Strength
from autoaug_ray.methods.discrete import published_table

TABLES = {name: published_table(name) for name in ("cifar10", "imagenet", "svhn")}
N = 20_000
SIGNED = {"ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"}
SIGNED |= {"Brightness", "Color", "Contrast", "Sharpness"}
MIXED = (
    (("Rotate", 0.7, 0.35), ("Color", 0.4, 0.9), ("Invert", 0.5, None)),
    (("TranslateX", 1.0, 1.0),),
    (("Brightness", 0.9, 0.6), ("Posterize", 0.8, 0.5)),
)
ALL = [
    RandAugment(),
    RandAugment(num_ops=3, magnitude=30),
    TrivialAugmentWide(),
    OneOp("standard", 31),
    OneOp("torchvision", 31),
    *(SubPolicies(table, num_bins=10) for table in TABLES.values()),
    SubPolicies((*MIXED, *TABLES["svhn"]), (1.0,) * 28, num_bins=10),
    PopulationPolicy((5, 7) * 30),
]


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def pba(**entries: tuple[int, int]) -> PopulationPolicy:
    """A policy whose first round has these (probability, magnitude) and is zero elsewhere."""
    first = [value for name in PBA_OPS for value in entries.get(name, (0, 0))]
    return PopulationPolicy(tuple(first + [0] * 30))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor]]:
    """What the policies ask of apply_ops: (op, magnitude) of each call; images pass unchanged."""
    seen: list[tuple[Tensor, Tensor]] = []

    def spy(images: Tensor, op: Tensor, magnitude: Tensor, strength: Strength | None) -> Tensor:
        seen.append((op, magnitude))
        return images

    monkeypatch.setattr(policies, "apply_ops", spy)
    return seen


def assert_frequencies(counts: Tensor, chances: Tensor) -> None:
    """Pearson's chi-square, within five standard deviations of its mean (fixed seeds)."""
    possible = chances > 0
    assert counts[~possible].sum() == 0
    expected = chances[possible] * counts.sum()
    statistic = ((counts[possible] - expected) ** 2 / expected).sum()
    free = possible.sum() - 1
    assert statistic < free + 5 * (2 * free) ** 0.5


# --- against torchvision --------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(32, 32), (28, 28), (224, 224), (20, 35)])
@pytest.mark.parametrize("num_bins", [2, 10, 31])
def test_bins_are_torchvisions(size: tuple[int, int], num_bins: int) -> None:
    spaces = [
        (transforms.RandAugment()._augmentation_space(num_bins, size), False),
        (transforms.AutoAugment()._augmentation_space(num_bins, size), False),
        (transforms.TrivialAugmentWide()._augmentation_space(num_bins), True),
    ]
    for space, wide in spaces:
        ours = magnitude_bins(num_bins, size, wide=wide)
        assert ours.shape == (len(OPS), num_bins)
        for name, (theirs, signed) in space.items():
            scale = 255 if name == "Solarize" else 1
            assert torch.equal(ours[OPS.index(name)], (theirs / scale).expand(num_bins)), name
            assert signed == (name in SIGNED)


@pytest.mark.parametrize(
    "table, first, last",
    [
        (
            "cifar10",
            (("Invert", 0.1, None), ("Contrast", 0.2, 6)),
            (("TranslateY", 0.7, 9), ("AutoContrast", 0.9, None)),
        ),
        (
            "imagenet",
            (("Posterize", 0.4, 8), ("Rotate", 0.6, 9)),
            (("Equalize", 0.8, None), ("Equalize", 0.6, None)),
        ),
        (
            "svhn",
            (("ShearX", 0.9, 4), ("Invert", 0.2, None)),
            (("ShearX", 0.7, 2), ("Invert", 0.1, None)),
        ),
    ],
)
def test_tables_are_the_published_ones(
    table: str, first: policies.SubPolicy, last: policies.SubPolicy
) -> None:
    """AutoAugment's tables 7 to 9; the rows between these stand in torchvision alone."""
    assert TABLES[table][0] == first and TABLES[table][-1] == last
    assert len(TABLES[table]) == 25 and {len(steps) for steps in TABLES[table]} == {2}


def test_op_sets_are_torchvisions() -> None:
    assert list(OPS[:-1]) == list(transforms.RandAugment()._augmentation_space(31, (32, 32)))
    assert OPS[-1] == "Invert"


# --- distributions --------------------------------------------------------------------------------


def test_randaugment_draws_ops_uniformly_and_signs_both_ways(
    calls: list[tuple[Tensor, Tensor]],
) -> None:
    RandAugment(num_ops=2, magnitude=13)(torch.rand(N, 1, 20, 30), seeded())
    bins = magnitude_bins(31, (20, 30))[:, 13]
    assert len(calls) == 2
    for op, magnitude in calls:
        assert_frequencies(op.bincount(minlength=15), torch.tensor([1 / 14] * 14 + [0]))
        assert torch.equal(magnitude.abs(), bins[op])
        for name in OPS[:-1]:
            negative = (magnitude[op == OPS.index(name)] < 0).float().mean()
            assert abs(negative - 0.5) < 0.07 if name in SIGNED else negative == 0
    pairs = calls[0][0] * 15 + calls[1][0]  # with replacement, and independent
    grid = torch.zeros(15, 15)
    grid[:14, :14] = 1 / 196
    assert_frequencies(pairs.bincount(minlength=225), grid.flatten())


def test_trivialaugment_draws_every_bin_of_every_op(calls: list[tuple[Tensor, Tensor]]) -> None:
    TrivialAugmentWide()(torch.rand(N, 1, 4, 4), seeded())
    ((op, magnitude),) = calls
    assert_frequencies(op.bincount(minlength=15), torch.tensor([1 / 14] * 14 + [0]))
    bins = magnitude_bins(31, (4, 4), wide=True)
    for name in SIGNED | {"Solarize"}:
        drawn = magnitude[op == OPS.index(name)]
        assert set(drawn.abs().tolist()) == set(bins[OPS.index(name)].tolist())
        assert_frequencies(
            (drawn.abs()[:, None] == bins[OPS.index(name)]).sum(dim=0), torch.full((31,), 1 / 31)
        )
    rotations = magnitude[op == OPS.index("Rotate")]
    assert abs((rotations < 0).float().mean() - 0.5 * 30 / 31) < 0.05


@pytest.mark.parametrize("table", TABLES)
def test_autoaugment_draws_sub_policies_and_their_probabilities(
    table: str, calls: list[tuple[Tensor, Tensor]]
) -> None:
    SubPolicies(TABLES[table], num_bins=10)(torch.rand(N, 1, 32, 32), seeded())
    (first, m1), (second, m2) = calls
    bins = magnitude_bins(10, (32, 32))
    chances = torch.zeros(15, 15)
    allowed: set[tuple[int, int, float, float]] = set()
    for steps in TABLES[table]:
        (a, p, i), (b, q, j) = steps
        for op1, chance1, bin1 in ((OPS.index(a), p, i or 0), (0, 1 - p, 0)):
            for op2, chance2, bin2 in ((OPS.index(b), q, j or 0), (0, 1 - q, 0)):
                chances[op1, op2] += chance1 * chance2 / 25
                allowed.add((op1, op2, float(bins[op1, bin1]), float(bins[op2, bin2])))
    assert_frequencies((first * 15 + second).bincount(minlength=225), chances.flatten())
    columns = (first, second, m1.abs(), m2.abs())
    assert set(zip(*(column.tolist() for column in columns), strict=True)) <= allowed
    for op, magnitude in calls:
        signed = torch.tensor([name in SIGNED for name in OPS])[op] & (magnitude != 0)
        assert abs((magnitude[signed] < 0).float().mean() - 0.5) < 0.05
        assert (magnitude[~signed] >= 0).all()


def test_sub_policies_of_any_length_with_levels_between_bins_and_weights(
    calls: list[tuple[Tensor, Tensor]],
) -> None:
    SubPolicies(MIXED, (3.0, 0.5, 1.0))(torch.rand(N, 1, 20, 30), seeded())
    ops = torch.stack([op for op, _ in calls])  # (steps, samples)
    share = torch.tensor([3.0, 0.5, 1.0]) / 4.5
    first = torch.zeros(15)
    for (name, p, _), s in zip((steps[0] for steps in MIXED), share, strict=True):
        first[OPS.index(name)] += p * s
        first[0] += (1 - p) * s
    assert_frequencies(ops[0].bincount(minlength=15), first)
    moved = ops[0] == OPS.index("TranslateX")  # the only sub-policy of one step
    assert (ops[1:, moved] == 0).all()
    fired = (ops[0] != 0)[ops[1] == OPS.index("Posterize")]  # steps are independent
    assert_frequencies(fired.long().bincount(minlength=2), torch.tensor([0.1, 0.9]))
    expected = {"Rotate": 0.35 * 30, "Color": 0.9 * 0.9, "TranslateX": 150 / 331 * 30,
                "Brightness": 0.6 * 0.9, "Posterize": 6.0, "Invert": 0.0}  # fmt: skip
    magnitude = torch.stack([m for _, m in calls])
    for name, value in expected.items():
        seen = magnitude[ops == OPS.index(name)].abs()
        torch.testing.assert_close(seen, torch.full_like(seen, value))


def test_levels_between_bins_have_the_slope_of_the_range() -> None:
    bins, op = magnitude_bins(2, (20, 30)).double(), torch.arange(15)
    level = torch.rand(15, generator=seeded(), dtype=torch.float64).requires_grad_()
    (slope,) = torch.autograd.grad(magnitude_between(bins, op, level).sum(), level)
    assert torch.allclose(slope, bins[:, 1] - bins[:, 0])
    ten = magnitude_bins(10, (20, 30))
    for b in range(10):
        assert torch.equal(magnitude_between(ten, op, torch.full((15,), float(b))), ten[:, b])


def test_pba_applies_at_most_two_entries_as_a_walk_over_a_shuffled_list() -> None:
    """Oracle: PBA's loop, sample by sample, on the same random numbers."""
    probability = torch.tensor([0.1 * (i % 11) for i in range(30)] + [0.0])
    chosen = PopulationPolicy._choose(500, probability, seeded(3))
    g = seeded(3)
    order = torch.rand(500, 30, generator=g).argsort(dim=1).tolist()
    dice = torch.rand(500, 30, generator=g).tolist()
    counts = torch.rand(500, generator=g).tolist()
    for sample in range(500):
        count = 0 if counts[sample] < 0.2 else 1 if counts[sample] < 0.5 else 2
        fired = []
        for entry, u in zip(order[sample], dice[sample], strict=True):
            if len(fired) < count and u < probability[entry]:
                fired.append(entry)
        assert chosen[sample].tolist() == (fired + [30, 30])[:2]


def test_pba_frequencies() -> None:
    always = torch.tensor([1.0] * 30 + [0.0])
    chosen = PopulationPolicy._choose(N, always, seeded())
    count = (chosen < 30).sum(dim=1)
    assert_frequencies(count.bincount(minlength=3), torch.tensor([0.2, 0.3, 0.5]))
    for k in (0, 1):
        fired = chosen[:, k][count > k]
        assert_frequencies(fired.bincount(minlength=31), torch.tensor([1 / 30] * 30 + [0]))
    both = chosen[count == 2]
    assert (both[:, 0] != both[:, 1]).all()
    one = torch.zeros(31)
    one[4] = 0.3
    fired = (PopulationPolicy._choose(N, one, seeded()) == 4).any(dim=1).float().mean()
    assert abs(fired - 0.8 * 0.3) < 0.02


def test_pba_magnitudes_are_the_papers(calls: list[tuple[Tensor, Tensor]]) -> None:
    expected = {  # at magnitude 0, 5, 9 for 32 x 32: arcelien/pba, augmentation_transforms.py
        "Rotate": (0, 15, 27),
        "Posterize": (4, 2, 1),
        "Solarize": (256 / 255, 128 / 255, 26 / 255),
        "ShearX": (0, 0.15, 0.27),
        "ShearY": (0, 0.15, 0.27),
        "TranslateX": (0, 5, 9),
        "TranslateY": (0, 5, 9),
        "Color": (-0.9, 0, 0.72),
        "Contrast": (-0.9, 0, 0.72),
        "Brightness": (-0.9, 0, 0.72),
        "Sharpness": (-0.9, 0, 0.72),
        "AutoContrast": (0, 0, 0),
        "Equalize": (0, 0, 0),
        "Invert": (0, 0, 0),
    }
    assert {*expected, "Cutout"} == set(PBA_OPS)
    for name, values in expected.items():
        for magnitude, value in zip((0, 5, 9), values, strict=True):
            calls.clear()
            pba(**{name: (10, magnitude)})(torch.rand(40, 1, 32, 32), seeded())
            op, drawn = torch.stack([c[0] for c in calls]), torch.stack([c[1] for c in calls])
            fired = op == OPS.index(name)
            assert 20 < fired.sum() < 40 and (op[~fired] == 0).all()
            if name in SIGNED and name not in ("Color", "Contrast", "Brightness", "Sharpness"):
                drawn = drawn.abs()
            torch.testing.assert_close(
                drawn[fired], torch.full_like(drawn[fired], value), atol=1e-6, rtol=0
            )


def test_pba_keeps_its_one_sided_factors_and_mirrors_its_warps(
    calls: list[tuple[Tensor, Tensor]],
) -> None:
    policy = PopulationPolicy((10, 9) * 30)
    policy(torch.rand(4000, 1, 32, 32), seeded())
    op, magnitude = torch.cat([c[0] for c in calls]), torch.cat([c[1] for c in calls])
    for name in set(PBA_OPS) - {"Cutout"}:
        negative = (magnitude[op == OPS.index(name)] < 0).float().mean()
        two_way = name[:5] in ("Rotat", "Shear", "Trans")
        assert abs(negative - 0.5) < 0.12 if two_way else negative == 0, name


def test_pba_cutout_is_a_square_of_the_stated_side_anywhere() -> None:
    images, strength = torch.ones(2000, 3, 32, 32), Strength(torch.ones(2000, 3, 32, 32))
    hole = pba(Cutout=(10, 9))(images, seeded(), strength)[:, 0] == 0.5
    area = hole.sum(dim=(1, 2))
    assert abs((area > 0).float().mean() - 0.8) < 0.04
    assert area.max() == 18 * 18 and area[area > 0].min() < 18 * 18  # cut at the border
    assert hole.any(dim=0).all()
    torch.testing.assert_close(strength.color_change(), area / 1024 * 0.5)
    assert torch.equal(pba(Cutout=(10, 0))(images[:50], seeded()), images[:50])


# --- laws for every policy ------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ALL, ids=repr)
@pytest.mark.parametrize("shape", [(64, 1, 28, 28), (64, 3, 20, 24)])
def test_policies_vary_by_sample_stay_in_range_and_repeat_by_seed(
    policy: RandAugment, shape: tuple[int, ...]
) -> None:
    one = torch.rand(1, *shape[1:], generator=seeded(9))
    images = one.repeat(shape[0], 1, 1, 1)
    strength = Strength(images)
    out = policy(images, seeded(5), strength)
    assert out.shape == images.shape and 0 <= out.min() and out.max() <= 1
    assert len({row.numpy().tobytes() for row in out}) > 15
    assert strength.displacement().unique().numel() > 3
    assert strength.color_change().unique().numel() > 5
    assert torch.equal(out, policy(images, seeded(5)))
    assert not torch.equal(out, policy(images, seeded(6)))
    assert torch.equal(images, one.repeat(shape[0], 1, 1, 1))


@pytest.mark.parametrize("policy", ALL, ids=repr)
def test_policies_draw_only_from_their_generator(policy: RandAugment) -> None:
    state = torch.get_rng_state()
    policy(torch.rand(8, 3, 16, 16, generator=seeded()), seeded())
    assert torch.equal(state, torch.get_rng_state())


def test_policies_do_what_they_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    """The images are those of apply_ops, called in turn with the drawn ops and magnitudes."""
    seen: list[tuple[Tensor, Tensor]] = []

    def spy(images: Tensor, op: Tensor, magnitude: Tensor, strength: Strength | None) -> Tensor:
        seen.append((op, magnitude))
        return apply_ops(images, op, magnitude, strength)

    monkeypatch.setattr(policies, "apply_ops", spy)
    images = torch.rand(40, 3, 16, 16, generator=seeded())
    out = RandAugment(num_ops=3)(images, seeded())
    expected = images
    for op, magnitude in seen:
        expected = apply_ops(expected, op, magnitude)
    assert len(seen) == 3 and torch.equal(out, expected)


def test_randaugment_of_magnitude_zero_changes_only_what_has_no_zero() -> None:
    images = torch.rand(300, 3, 16, 16, generator=seeded()) * 0.99
    out = RandAugment(num_ops=1, magnitude=0)(images, seeded())
    op = torch.randint(14, (300,), generator=seeded())  # its first draw
    no_zero = (op == OPS.index("AutoContrast")) | (op == OPS.index("Equalize"))
    changed = (out - images).abs().amax(dim=(1, 2, 3)) > 1e-6
    assert torch.equal(changed, no_zero)
    assert torch.equal(RandAugment(num_ops=0)(images, seeded()), images)


@pytest.mark.parametrize(
    "make,message",
    [
        (lambda: RandAugment(num_ops=-1), "num_ops must be an integer >= 0, but is -1"),
        (lambda: RandAugment(magnitude=31), r"magnitude must be an integer in 0..30, but is 31"),
        (lambda: RandAugment(magnitude=9.5), r"magnitude must be an integer.*9.5"),  # type: ignore
        (lambda: RandAugment(num_bins=1), "num_bins must be an integer >= 2, but is 1"),
        (lambda: TrivialAugmentWide(num_bins=0), "num_bins must be an integer >= 2, but is 0"),
        (lambda: SubPolicies(()), "table must hold at least one sub-policy"),
        (lambda: SubPolicies(((("Spin", 0.5, 1),),)), "op must be one of .*'Spin'"),
        (lambda: SubPolicies(((("Rotate", 1.5, 1),),)), "of Rotate must be in 0..1, but is 1.5"),
        (lambda: SubPolicies(((("Rotate", 0.5, 2),),)), "level of Rotate must be in 0..1, .* 2"),
        (lambda: SubPolicies(MIXED, (1.0,)), "weights must be 3 numbers"),
        (lambda: SubPolicies(MIXED, (0.0,) * 3), "not all 0"),
        (lambda: PopulationPolicy((0,) * 59), "policy must have 60 integers, but has 59"),
        (lambda: PopulationPolicy((11,) + (0,) * 59), r"policy\[0\] must be.*0..10, but is 11"),
        (lambda: PopulationPolicy((0, 10) * 30), r"policy\[1\] must be.*0..9, but is 10"),
        (lambda: PopulationPolicy((True,) * 60), r"policy\[0\] must be an integer.*True"),
    ],
)
def test_wrong_settings_are_refused_at_birth(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_policies_are_frozen_values() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        RandAugment().magnitude = 3  # type: ignore[misc]
    assert PopulationPolicy([1] * 60) == PopulationPolicy((1,) * 60)  # type: ignore[arg-type]
    assert len({RandAugment(), RandAugment(), RandAugment(magnitude=3)}) == 2
