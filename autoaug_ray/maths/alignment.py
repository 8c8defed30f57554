"""The hypergradient of one step by alignment: without a second derivative, for about a plain step.

The notation is that of `maths.hypergradient`. To first order in the classifier's learning rate, the
meta loss after a step is L_v(w) + <v, w' - w> with v = dL_v/dw. Only the gradient g = dL_t/dw in
w' = update(w, m, g) depends on theta, so

    h = d<d, g>/dtheta    with d = (dw'/dg)^T v, which is -lr v for SGD without Nesterov.

theta learns to make training gradients that point where the meta loss falls. Now <d, g> is the
derivative of L_t along d, so that a difference of first derivatives gives h (DARTS takes it so):

    h = (dL_t(w + eps d)/dtheta - dL_t(w)/dtheta) / eps.

The second term comes with the trainer's own backward pass; what is added is one pass through the
network towards its images. Two terms may be averaged over steps, since neither depends on the batch
at hand: v, and the reference r below.

What is held fixed. Harder augmentations have longer gradients. Through a plain look-ahead they look
like a larger learning rate, which early in training always helps, so that plain hypergradients push
the augmentation outwards whatever the target is. That effect lies along the mean gradient E[g], and
a reference r, which is an average of training gradients, stands for it: only the part of g across r
may depend on theta,

    g -> g - (c - stop(c)) r    with c = <g, r> / <r, r>,    hence    d -> d - (<d, r> / <r, r>) r.

Dividing g by its own length instead (`hypergradient.same_length`) means r = g, the gradient of
one batch: most of its length is noise, which augmentation raises, and h then punishes augmentation.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from autoaug_ray.maths.hypergradient import Update, Weights

DISTANCE = 0.01
"""Length of eps d as a share of that of w, over which the difference is taken."""


@dataclass
class Average:
    """A running average of tensors by name: a plain mean at first, exponential later."""

    memory: float
    """Steps after which a value has lost most of its weight."""
    count: int = 0
    """Values that were added."""
    values: dict[str, Tensor] = field(default_factory=dict)

    def add(self, new: Weights, steps: int = 1) -> None:
        """Takes in values that stand for so many steps."""
        keep = min(max(0.0, 1 - steps / self.memory), self.count / (self.count + 1))
        if not self.count:
            self.values = {k: torch.zeros_like(v) for k, v in new.items()}
        torch._foreach_lerp_(list(self.values.values()), [new[k] for k in self.values], 1 - keep)
        self.count += 1

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "values": self.values}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        self.count = state["count"]
        self.values = {k: v.clone().to(device) for k, v in state["values"].items()}


def inner(a: Weights, b: Weights) -> Tensor:
    """<a, b> () over all tensors of b."""
    return torch.stack([(a[k] * b[k]).sum() for k in b]).sum()


def along(a: Weights, r: Weights) -> Tensor:
    """c () such that c r is the component of a along r; 0 where r is 0."""
    square = inner(r, r)
    return inner(a, r) / square.clamp_min(torch.finfo(square.dtype).tiny)


def held(g: Weights, r: Weights) -> Weights:
    """The values of g, whose component along r is a constant for theta."""
    c = along(g, r)
    return {k: v - (c - c.detach()) * r[k] for k, v in g.items()}


def across(d: Weights, r: Weights) -> dict[str, Tensor]:
    """d without its component along r: the adjoint of the derivative of `held`."""
    c = along(d, r)
    return {k: v - c * r[k] for k, v in d.items()}


def pulled_back(update: Update, w: Weights, m: Weights, g: Weights, v: Weights) -> Weights:
    """d = (dw'/dg)^T v for w' = update(w, m, g); exact also for Adam, whose step bends."""
    leaves = {k: x.detach().requires_grad_() for k, x in g.items()}
    moved, _ = update({k: x.detach() for k, x in w.items()}, m, leaves)
    d = torch.autograd.grad(list(moved.values()), list(leaves.values()), [v[k] for k in moved])
    return dict(zip(leaves, d, strict=True))


def shifted(w: Weights, d: Weights, distance: float = DISTANCE) -> tuple[dict[str, Tensor], Tensor]:
    """(w + eps d, eps ()), where |eps d| = distance |w|; eps is infinite where d is 0."""
    eps = distance * (inner(w, w) / inner(d, d)).sqrt().detach()
    step = torch.nan_to_num(eps, posinf=0.0)
    return {k: (v + step * d[k]).detach() for k, v in w.items()}, eps
