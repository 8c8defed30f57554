"""Whose bilevel method it is: what a protocol says of the settings that depend on it."""

from collections.abc import Mapping
from typing import Any, Literal

from autoaug_ray.settings.training import Training

Protocol = Literal["ours", "paper", "release"]
PUBLISHED = {
    "size": "small",
    "symmetric": False,
    "optimiser": "sgd",
    "lr": 0.2,
    "weight_decay": 0.01,
    "estimator": "exact",
    "normalise": "none",
    "every": 1,
    "until": 1.0,
}
DEFAULTS: Mapping[Protocol, Mapping[str, Any]] = {
    "ours": {
        "size": "scale",
        "symmetric": True,
        "optimiser": "adam",
        "lr": 0.03,
        "weight_decay": 0.0,
        "estimator": "alignment",
        "normalise": "average",
        "every": 3,
        "until": 0.5,
        "resplit": "epoch",
    },
    "paper": PUBLISHED | {"resplit": "epoch"},
    "release": PUBLISHED | {"resplit": "fixed"},
}
"""What a protocol says of the settings whose defaults depend on it."""
FREE: Mapping[Protocol, tuple[str, ...]] = {
    "paper": ("lr", "weight_decay", "size", "unroll", "every", "resplit"),
    "release": ("lr", "weight_decay"),
}
"""What a study may change of a published protocol, of the settings that make a protocol."""
GROUPS = ("translation", "affine", "color", "affine+color")
"""What the paper learns."""
PLAIN = ("spread", "unroll", "fraction", "edits", "memory", "meta_every")
"""Settings whose defaults a published protocol keeps, but for those that are FREE."""


def check_training(protocol: Protocol, training: Training) -> None:
    """Raise ValueError, in one sentence, for a classifier's training that a protocol cannot look
    ahead of: release has a momentum of its own, for one rule of SGD."""
    needed: dict[str, Any] = {"optimiser": "sgd", "lr_decay": 1, "weight_decay_on": "all"}
    for name, value in needed.items():
        if protocol == "release" and (got := getattr(training, name)) != value:
            raise ValueError(f"protocol: release needs train.{name}: {value}, got {got!r}")
