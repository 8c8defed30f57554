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
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from autoaug_ray.maths.recompute import Replay

Weights = Mapping[str, Tensor]
Loss = Callable[[Weights], Tensor]
Update = Callable[[Weights, Weights, Weights], tuple[Weights, Weights]]
"""(weights, the optimiser's buffers, gradients) -> (weights, buffers) after one step."""
Hold = Callable[[Weights], Weights]
"""Gradients -> the same values, a part of which is a constant for theta."""


@dataclass(frozen=True)
class Parts:
    """The loss of a batch that is worked off in parts: the sum of `terms`, each with a graph of its
    own, which need not be in memory together."""

    terms: Sequence[Loss]
    """Each is the mean loss of a part of the batch times its share of the batch."""
    total: Callable[[list[Tensor]], list[Tensor]] = list
    """Sums each tensor over the processes that have terms of this batch; without others, nothing
    is to be done."""

    def __call__(self, w: Weights) -> Tensor:
        """Its value, without a graph."""
        return self.total([torch.stack([term(w).detach() for term in self.terms]).sum()])[0]


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
    """Adam as torch.optim applies it at its `step`-th step (from 1): with L2 weight decay, or, if
    that is `decoupled`, AdamW (Loshchilov and Hutter 2019), whose decay is in no gradient.

    The buffers hold a weight's mean gradient under its name, and the mean square under its name
    followed by SQUARE.
    """

    lr: float
    weight_decay: float = 0.0
    step: int = 1
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    decoupled: bool = False

    def __call__(self, w: Weights, m: Weights, g: Weights) -> tuple[Weights, Weights]:
        first, second = self.betas
        if self.decoupled:
            decayed = {k: g[k] for k in w}
            w = {k: (1 - self.lr * self.weight_decay) * v for k, v in w.items()}
        else:
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
class Grouped:
    """A rule of its own for each group of weights, as the parameter groups of torch.optim have."""

    groups: tuple[tuple[tuple[str, ...], SGD | Adam], ...]
    """The names of some weights, and their rule; together they are all weights."""

    def __call__(self, w: Weights, m: Weights, g: Weights) -> tuple[Weights, Weights]:
        moved: dict[str, Tensor] = {}
        buffers: dict[str, Tensor] = {}
        for names, rule in self.groups:
            some, of_some = rule({k: w[k] for k in names}, m, g)
            moved, buffers = moved | dict(some), buffers | dict(of_some)
        return moved, buffers


Rule = SGD | Adam | Grouped


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
    alignment between the training and the meta gradient (first order in the learning rate). Most of
    the length is the noise of one batch, though: `alignment.held` holds what really is too long.
    """
    norm = torch.stack([v.square().sum() for v in g.values()]).sum().sqrt()
    scale = norm.detach() / norm.clamp_min(torch.finfo(norm.dtype).tiny)
    return {k: v * scale for k, v in g.items()}


def twice(loss: Loss) -> Loss:
    """The same loss, whose gradient can be differentiated also through attention.

    Torch's fused kernels of attention have no second derivative; its plain one is slower, so that
    nothing else runs with it.
    """

    def differentiable(loss: Loss) -> Loss:
        def value(w: Weights) -> Tensor:
            with sdpa_kernel(SDPBackend.MATH):
                return loss(w)

        return value

    if isinstance(loss, Parts):
        return Parts([differentiable(term) for term in loss.terms], loss.total)
    return differentiable(loss)


def unrolled(
    train_losses: Sequence[Loss],
    meta_loss: Loss,
    w: Weights,
    m: Weights,
    theta: Sequence[Tensor],
    updates: Sequence[Update],
    *,
    hold: Hold | None = None,
) -> Hypergradient:
    """The exact h through K = len(train_losses) = len(updates) steps (eq. 8), by double backward.

    `w` are leaves that require a gradient, `m` are constants. The gradients of the unrolled
    steps go through `hold`, if given. Losses that are `Parts` give the same h, part by
    part: see `_in_parts`.
    """
    train_losses = [twice(loss) for loss in train_losses]
    if any(isinstance(loss, Parts) for loss in (*train_losses, meta_loss)):
        return _in_parts(train_losses, meta_loss, w, m, theta, updates, hold)
    first: dict[str, Tensor] = {}
    train_loss = torch.zeros(())
    for step, (loss_of, update) in enumerate(zip(train_losses, updates, strict=True)):
        loss = loss_of(w)
        # Only towards w: the half of the backward pass that leads to the images is not needed.
        g = gradient(loss, w, create_graph=True)
        if step == 0:
            first, train_loss = {k: v.detach() for k, v in g.items()}, loss.detach()
        w, m = update(w, m, hold(g) if hold else g)
    loss = meta_loss(w)
    h = torch.autograd.grad(loss, list(theta), materialize_grads=True)
    return Hypergradient(list(h), first, train_loss, loss.detach())


class _Step(NamedTuple):
    """An unrolled step whose graph was not kept."""

    w: dict[str, Tensor]
    m: Weights
    g: dict[str, Tensor]
    terms: list[Replay]
    total: Callable[[list[Tensor]], list[Tensor]]
    update: Update


def _in_parts(
    train_losses: Sequence[Loss],
    meta_loss: Loss,
    w: Weights,
    m: Weights,
    theta: Sequence[Tensor],
    updates: Sequence[Update],
    hold: Hold | None,
) -> Hypergradient:
    """What `unrolled` gives, with the graph of one part of one batch in memory at a time.

    The chain rule by hand. Forwards, g^k = sum_i g_i^k and w^{k+1} = update(w^k, m^k, g^k), of
    which only values are kept. Backwards from v = dL_v/dw^K, which is a sum over parts as well,
    update's own derivative turns the adjoints of (w^{k+1}, m^{k+1}) into those of (w^k, m^k) and
    of g^k, called u; and <u, g^k> = sum_i <u, g_i^k> is differentiated part by part, towards theta
    and, if steps precede, w^k. Every part is passed through twice, which costs a plain step more.
    """

    def updated(step: _Step, g: Weights) -> tuple[Weights, Weights]:
        return step.update(step.w, step.m, hold(g) if hold else g)

    steps: list[_Step] = []
    losses: list[Tensor] = []
    for loss_of, update in zip(train_losses, updates, strict=True):
        whole = _parts(loss_of)
        w = _leaves(w)
        terms = [Replay(term) for term in whole.terms]
        loss, g = _summed(terms, whole.total, w)
        steps.append(_Step(w, _leaves(m), g, terms, whole.total, update))
        losses.append(loss)
        with torch.no_grad():
            w, m = updated(steps[-1], g)
    meta, at_w = value_and_gradient(meta_loss, _leaves(w))
    at_m = {k: torch.zeros_like(v) for k, v in m.items()}
    h = [torch.zeros_like(p) for p in theta]
    for k in reversed(range(len(steps))):
        step = steps[k]
        g = _leaves(step.g)
        moved = updated(step, g)
        outputs = [moved[0][name] for name in at_w] + [moved[1][name] for name in at_m]
        inputs = [*step.w.values(), *step.m.values(), *g.values()]
        adjoints = torch.autograd.grad(
            outputs, inputs, [*at_w.values(), *at_m.values()], materialize_grads=True
        )
        of_w, of_m = adjoints[: len(step.w)], adjoints[len(step.w) : len(step.w) + len(step.m)]
        u = adjoints[len(step.w) + len(step.m) :]
        towards = [*theta, *(step.w.values() if k else ())]
        mixed = [torch.zeros_like(p) for p in towards]
        for term in step.terms:
            g_i = gradient(term(step.w), step.w, create_graph=True)
            # Parts may share the graph of what made their images, which must outlive each of them.
            d = torch.autograd.grad(
                list(g_i.values()), towards, list(u), materialize_grads=True, retain_graph=True
            )
            mixed = [a + b for a, b in zip(mixed, d, strict=True)]
            del g_i, d
        mixed = step.total(mixed)
        h = [a + b for a, b in zip(h, mixed[: len(h)], strict=True)]
        if k:
            second = mixed[len(h) :]
            at_w = {n: a + b for n, a, b in zip(step.w, of_w, second, strict=True)}
            at_m = dict(zip(step.m, of_m, strict=True))
    return Hypergradient(h, steps[0].g, losses[0], meta)


def _parts(loss: Loss) -> Parts:
    return loss if isinstance(loss, Parts) else Parts([loss])


def _leaves(w: Weights) -> dict[str, Tensor]:
    """Copies that require a gradient and share their memory with w."""
    return {k: v.detach().requires_grad_() for k, v in w.items()}


def _summed(
    terms: Sequence[Loss], total: Callable[[list[Tensor]], list[Tensor]], w: Weights
) -> tuple[Tensor, dict[str, Tensor]]:
    """The sum of the terms over all processes, and its gradient at w, with one graph at a time."""
    sums = [torch.zeros_like(v) for v in w.values()]
    value = torch.zeros((), device=sums[0].device)
    for term in terms:
        loss = term(w)
        sums = [a + b for a, b in zip(sums, gradient(loss, w).values(), strict=True)]
        value = value + loss.detach()
        del loss
    value, *sums = total([value, *sums])
    return value, dict(zip(w, sums, strict=True))


def value_and_gradient(loss: Loss, w: Weights) -> tuple[Tensor, dict[str, Tensor]]:
    """A loss () and its gradient at w, leaves that require one; `Parts` one by one."""
    whole = _parts(loss)
    return _summed(whole.terms, whole.total, w)


def towards(loss: Loss, w: Weights, theta: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """A loss () at fixed weights w, and its gradient towards theta; `Parts` one by one.

    Where theta is empty, nothing is computed.
    """
    if not theta:
        return torch.zeros(()), []
    whole = _parts(loss)
    sums = [torch.zeros_like(p) for p in theta]
    value = torch.zeros((), device=sums[0].device)
    for term in whole.terms:
        part = term(w)
        d = torch.autograd.grad(part, list(theta), retain_graph=len(whole.terms) > 1)
        sums, value = [a + b for a, b in zip(sums, d, strict=True)], value + part.detach()
    value, *sums = whole.total([value, *sums])
    return value, sums


def gradient(loss: Tensor, w: Weights, *, create_graph: bool = False) -> dict[str, Tensor]:
    """dloss/dw of a scalar loss, under the names of w; zeros for those that take no part in it,
    such as the mask token of a transformer."""
    grads = torch.autograd.grad(
        loss, list(w.values()), create_graph=create_graph, materialize_grads=True
    )
    return dict(zip(w, grads, strict=True))
