"""Whether to mirror: the rule on hand-made trainings, and one measured on what must not be."""

import numpy as np
import pytest
from PIL import Image

from autoaug_ray.commands import flips
from autoaug_ray.commands.flips import decide, measure
from autoaug_ray.maths.statistics import compare
from autoaug_ray.settings.dataset import Dataset


def flip_against_none(*points):
    base = {seed: 0.7 for seed in range(len(points))}
    above = {seed: 0.7 + p / 100 for seed, p in enumerate(points)}
    return compare("flip", above, "none", base)


@pytest.mark.parametrize(
    "points, fixed, learned",
    [
        ((-31, -29, -30), "none", "none"),
        ((-1.2, -0.8, -1.0), "none", "none"),
        ((4, 5, 6), "horizontal", "horizontal"),
        ((-4, 5, 6), "horizontal", "learned"),
        ((4, -5, -6), "none", "learned"),
        ((0, 0, 0), "none", "learned"),
        ((), "none", "learned"),
    ],
)
def test_the_rule(points, fixed, learned):
    """Bounds of t-intervals at 2 degrees of freedom: 1 +- 0.5 leaves zero out, 2 +- 14 does not."""
    assert decide(flip_against_none(*points))[:2] == (fixed, learned)


def test_the_sentence_has_the_interval():
    """t(2) at 97.5 % is 4.303, the standard error of (-31, -30, -29) 0.577."""
    why = decide(flip_against_none(-31, -30, -29)).why
    assert "-30.00 [-32.48, -27.52] points" in why and "does harm" in why


def test_flips_are_found_harmful_where_the_class_is_a_direction(tmp_path, monkeypatch):
    """Images that are bright on the left or on the right, under noise. Networks that see both ways
    of either class guess, and all their guesses are alike: seeds differ much, and it takes some."""
    rng = np.random.default_rng(0)
    half = np.where(np.arange(12) < 6, 60, 190) * np.ones((12, 1))
    for name, halves in (("left", half[:, ::-1]), ("right", half)):
        (tmp_path / name).mkdir()
        for i in range(40):
            noisy = (halves + rng.normal(0, 20, (12, 12))).clip(0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(tmp_path / name / f"{i}.png")
    monkeypatch.setattr(flips, "STEPS", 20)
    monkeypatch.setattr(flips, "SEEDS", 8)
    dataset = Dataset(
        name="folder", root=str(tmp_path), test_fraction=0.2, image_size=12, channels=1
    )
    found = measure(dataset)
    assert decide(found)[:2] == ("none", "none") and found.difference < -0.2
    assert found.parts.images == round(0.4 * 64), "not the held-out part of the pool"
