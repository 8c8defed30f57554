"""How many images a classifier gets right."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from autoaug_ray import data
from autoaug_ray.data import AnySplit
from autoaug_ray.learner import Learner
from autoaug_ray.methods.base import Method, as_float

FIVE = 5


class Accuracy(NamedTuple):
    """Shares in [0, 1]; a class without images has 0."""

    mean_accuracy: float
    class_accuracy: list[float]
    top5: float | None
    """Share of images whose class is among the five likeliest; None with five classes or fewer."""
    right: bytes
    """A byte for each image, in the order of the split: 1 where it is classified correctly."""


@torch.no_grad()
def evaluate(method: Method, learner: Learner, split: AnySplit, state: nn.Module) -> Accuracy:
    """Share of images that are classified correctly, over all images and per class."""
    parts: list[Tensor] = []
    among: list[Tensor] = []
    with learner.evaluated():
        for batch in data.batches(split):
            logits = method.predict(learner, as_float(batch.images), state)  # (n, classes)
            parts.append(logits.argmax(1) == batch.labels)
            if logits.shape[1] > FIVE:
                likeliest = logits.topk(FIVE, dim=1).indices
                among.append((likeliest == batch.labels[:, None]).any(1))
    correct = torch.cat(parts).float()
    correct_counts = torch.bincount(split.labels, weights=correct)
    counts = torch.bincount(split.labels)
    return Accuracy(
        float(correct.mean()),
        (correct_counts / counts.clamp_min(1)).tolist(),
        float(torch.cat(among).float().mean()) if among else None,
        correct.bool().cpu().numpy().tobytes(),
    )
