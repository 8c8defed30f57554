"""The derivative of the meta loss towards the augmenter, through the classifier's own update.

Notation (online bilevel paper, eq. 3-8; the paper's omega is w here):

    w, m        weights, and the optimiser's buffers, before the unrolled steps
    theta       parameters of the augmenter
    L_t(w, theta), L_v(w)
                loss of an augmented training batch, loss of a meta batch
    g = dL_t/dw, and (w', m') = update(w, m, g): the very rule that the trainer applies
    K           number of unrolled steps, w^0 = w -> w^1 -> ... -> w^K
    h = dL_v(w^K)/dtheta
                the hypergradient

For one step, h = dL_v/dw' . dw'/dg . d2L_t/(dw dtheta): eq. 4 with the one term of eq. 8.
The losses are functions of the weights alone, so that tests can compare h with finite differences.

There are no forward-mode variants. A backward through the tangent of L_t is wrong in torch 2.14,
whose forward derivative of batch norm takes the batch's statistics for constants. A tangent of the
backward pass would be right, but is not implemented for several activations.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]
Loss = Callable[[Weights], Tensor]
Update = Callable[[Weights, Weights, Weights], tuple[Weights, Weights]]
"""(weights, the optimiser's buffers, gradients) -> (weights, buffers) after one step."""


@dataclass(frozen=True)
class SGD:
    """Heavy-ball or Nesterov SGD with L2 weight decay, as torch.optim.SGD applies it.

    A pure function of its arguments, so that one rule serves the look-ahead and its derivative.
    """

    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False

    def __call__(self, w: Weights, m: Weights, g: Weights) -> tuple[Weights, Weights]:
        decayed = {k: g[k] + self.weight_decay * w[k] for k in w}
        buffers = {k: self.momentum * m[k] + decayed[k] for k in w}
        direction = (
            {k: decayed[k] + self.momentum * buffers[k] for k in w} if self.nesterov else buffers
        )
        return {k: w[k] - self.lr * direction[k] for k in w}, buffers


SQUARE = "/square"
"""Suffix of a weight's name under which the buffers hold its mean squared gradient."""


@dataclass(frozen=True)
class Adam:
    """Adam with L2 weight decay, as torch.optim.Adam applies it at its `step`-th step (from 1).

    The buffers hold a weight's mean gradient under its name, and the mean square under its name
    followed by SQUARE.
    """

    lr: float
    weight_decay: float = 0.0
    step: int = 1
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __call__(self, w: Weights, m: Weights, g: Weights) -> tuple[Weights, Weights]:
        first, second = self.betas
        decayed = {k: g[k] + self.weight_decay * w[k] for k in w}
        mean = {k: first * m[k] + (1 - first) * d for k, d in decayed.items()}
        square = {
            k + SQUARE: second * m[k + SQUARE] + (1 - second) * d.square()
            for k, d in decayed.items()
        }
        # The root of 0, of a weight that never had a gradient, has no derivative; 1e-15 << eps.
        root = {k: square[k + SQUARE].clamp_min(1e-30).sqrt() for k in w}
        unbiased = math.sqrt(1 - second**self.step)
        size = self.lr / (1 - first**self.step)
        moved = {k: w[k] - size * mean[k] / (root[k] / unbiased + self.eps) for k in w}
        return moved, mean | square


@dataclass(frozen=True)
class Hypergradient:
    """h, and what was computed on the way to it; nothing in it has a graph."""

    theta: list[Tensor]
    """h, one tensor per parameter of the augmenter; zeros where no gradient arrives."""
    weights: dict[str, Tensor]
    """g of the first unrolled step: with K = 1 the trainer applies it as it is."""
    train_loss: Tensor
    """() L_t of the first unrolled step."""
    meta_loss: Tensor
    """() L_v(w^K)."""


def same_length(g: Weights) -> Weights:
    """The values of g, with a global norm that is a constant for theta: only g's direction has a
    derivative.

    Harder augmentations have longer gradients. Through a plain look-ahead they look like a larger
    learning rate, which early in training always helps; so the plain hypergradient pushes the
    augmentation outwards whatever the target is. At a fixed length, h is the gradient of the
    alignment between the training and the meta gradient (first order in the learning rate).
    """
    norm = torch.stack([v.square().sum() for v in g.values()]).sum().sqrt()
    scale = norm.detach() / norm.clamp_min(torch.finfo(norm.dtype).tiny)
    return {k: v * scale for k, v in g.items()}


def unrolled(
    train_losses: Sequence[Loss],
    meta_loss: Loss,
    w: Weights,
    m: Weights,
    theta: Sequence[Tensor],
    updates: Sequence[Update],
    *,
    normalise: bool = False,
) -> Hypergradient:
    """The exact h through K = len(train_losses) = len(updates) steps (eq. 8), by double backward.

    `w` are leaves that require a gradient, `m` are constants. With `normalise`, the gradients of
    the unrolled steps go through `same_length`.
    """
    first: dict[str, Tensor] = {}
    train_loss = torch.zeros(())
    for step, (loss_of, update) in enumerate(zip(train_losses, updates, strict=True)):
        loss = loss_of(w)
        # Only towards w: the half of the backward pass that leads to the images is not needed.
        g = gradient(loss, w, create_graph=True)
        if step == 0:
            first, train_loss = {k: v.detach() for k, v in g.items()}, loss.detach()
        w, m = update(w, m, same_length(g) if normalise else g)
    loss = meta_loss(w)
    h = torch.autograd.grad(loss, list(theta), materialize_grads=True)
    return Hypergradient(list(h), first, train_loss, loss.detach())


def gradient(loss: Tensor, w: Weights, *, create_graph: bool = False) -> dict[str, Tensor]:
    """dloss/dw of a scalar loss, under the names of w; all of w take part in the loss."""
    grads = torch.autograd.grad(loss, list(w.values()), create_graph=create_graph)
    return dict(zip(w, grads, strict=True))
