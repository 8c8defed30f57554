"""What `train:` means for an optimiser: its groups of weights, their update and their rate."""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from autoaug_ray.maths.hypergradient import SGD, Adam, Grouped, Rule
from autoaug_ray.settings.training import Training

Tensors = tuple[Tensor, ...] | list[Tensor]


class Group(NamedTuple):
    """Weights that are updated alike."""

    names: tuple[str, ...]
    share: float
    """The part of the training's learning rate that it learns with."""
    weight_decay: float


def groups_of(model: nn.Module, training: Training) -> list[Group]:
    """The weights that learn, by how they do; first those that decay.

    Raises UserError for layer-wise rates in a network whose blocks have no order.
    """
    depths: dict[str, int] = {}
    if training.lr_decay < 1:
        from autoaug_ray.models.layers import depths as depths_of  # torchvision, in some seconds

        depths = depths_of(model)
    top = max(depths.values(), default=0)
    names: defaultdict[tuple[float, float], list[str]] = defaultdict(list)
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            share = training.lr_decay ** (top - depths.get(name, top))
            matrix = weight.dim() > 1 and name.endswith("weight")
            decays = training.weight_decay_on == "all" or matrix
            names[share, training.weight_decay if decays else 0.0].append(name)
    groups = [Group(tuple(some), *how) for how, some in names.items()]
    return sorted(groups, key=lambda group: -group.weight_decay)


def optimiser_of(
    model: nn.Module, groups: Sequence[Group], training: Training
) -> torch.optim.Optimizer:
    """The optimiser of a model's weights, with a parameter group for each of the `groups`."""
    weights = dict(model.named_parameters())
    parameters = [
        {"params": [weights[name] for name in group.names], "weight_decay": group.weight_decay}
        for group in groups
    ]
    if training.optimiser == "adam":
        return torch.optim.Adam(parameters, lr=training.lr)
    if training.optimiser == "adamw":
        return torch.optim.AdamW(parameters, lr=training.lr)
    return torch.optim.SGD(
        parameters, lr=training.lr, momentum=training.momentum, nesterov=training.nesterov
    )


def rule_of(optimiser: torch.optim.Optimizer, groups: Sequence[Group], step: int) -> Rule:
    """The update that the optimiser will do at its `step`-th step (from 1), as a pure function."""
    rules: list[SGD | Adam] = []
    for group in optimiser.param_groups:
        how = group["lr"], group["weight_decay"]
        if isinstance(optimiser, torch.optim.Adam):
            rules.append(Adam(*how, step, decoupled=group["decoupled_weight_decay"]))
        else:
            rules.append(SGD(how[0], group["momentum"], how[1], group["nesterov"]))
    if len(rules) == 1:
        return rules[0]
    return Grouped(tuple((group.names, rule) for group, rule in zip(groups, rules, strict=True)))


def rate(training: Training, t: float) -> float:
    """Learning rate as a share of its peak at progress t in (0, 1)."""
    kind, warmup = training.schedule, 0.25 if training.schedule == "onecycle" else training.warmup
    if t < warmup:
        return t / warmup
    if kind in ("cosine", "onecycle"):
        return 0.5 * (1 + math.cos(math.pi * (t - warmup) / (1 - warmup)))
    if kind == "step":
        return float(0.2 ** sum(t >= milestone for milestone in (0.3, 0.6, 0.8)))
    return 1.0


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """torch's exponential moving average of a model's weights and buffers."""
    moving = get_ema_multi_avg_fn(decay)

    def update(averages: Tensors, values: Tensors, count: Tensor | int) -> None:
        # Whole numbers are counts and indices, such as Swin's of relative positions, of which torch
        # would round the averages down.
        if averages[0].is_floating_point():
            moving(averages, values, count)
        else:
            torch._foreach_copy_(averages, values)

    return AveragedModel(model, multi_avg_fn=update, use_buffers=True)
