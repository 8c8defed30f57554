"""Sub-policies that gradients can change, as in DADA (arxiv.org/abs/2003.03780, section 3).

Notation:

    s = 1..S        sub-policies; step k of s is the op o[s, k], which is fixed
    pi[s]           probability of sub-policy s
    p, mu [s, k]    probability and magnitude of a step, in [0, 1]
    theta           parameters that learn: pi = softmax(theta_pi), p = sigmoid(theta_p),
                    mu = sigmoid(theta_mu)
    tau             temperature of both relaxations
    x_0, x_k        an image, and the image after k steps
    f(x)            the image under the op of the step, at its magnitude

The forward pass is discrete. Every sample draws one sub-policy (Gumbel, argmax), and each of its
steps fires or not (logistic noise, sign), so that a sample costs one op per step, however many
there are to choose from. The backward pass goes through the relaxed variables in their place:

    w               relaxed weight of the drawn sub-policy: softmax((log pi + gumbel) / tau)
    b               relaxed Bernoulli of a step: sigmoid((theta_p + logistic) / tau)
    x_k = x_{k-1} + b (f(x_{k-1}) - x_{k-1})
    result = w x_K

The full relaxation would also add the weighted images of the sub-policies that were not drawn. Like
DADA and Faster AutoAugment, this leaves them out, as if they were black. Counting them as the
unaugmented image would seem better and is worse: a gradient towards pi from one batch then has a
cosine of 0.45 to the exact one instead of 0.68 (15 ops, small CNN, tau 0.5; 0.44 at tau 0.1).

Warps and factor ops have exact derivatives in mu. The others have none; as in DADA, Posterize and
Solarize get d pixel / d mu = 1, and the ops of STRAIGHT_IMAGE, whose results are whole levels, pass
the gradient of their result on to their input as it is.
"""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn

from autoaug_ray.maths.gumbel import discrete, gumbel, relaxed
from autoaug_ray.maths.image_ops import OPS, apply_ops
from autoaug_ray.maths.policies import (
    SubPolicies,
    magnitude_between,
    magnitude_bins,
    with_random_sign,
)

STRAIGHT_MAGNITUDE = ("Posterize", "Solarize")
STRAIGHT_IMAGE = ("Posterize", "AutoContrast", "Equalize")


class RelaxedPolicy(nn.Module):
    """theta and the ops; training starts from equal chances and p = mu = 1/2, as in DADA."""

    op: Tensor
    """(S, K) indices into OPS."""

    def __init__(self, ops: Sequence[Sequence[str]], tau: float) -> None:
        """`ops` are S sub-policies of equally many steps, each a name of OPS."""
        super().__init__()
        op = torch.tensor([[OPS.index(name) for name in steps] for steps in ops])
        self.register_buffer("op", op, persistent=False)
        self.tau = tau
        self.choice = nn.Parameter(torch.zeros(len(op)))
        self.probability = nn.Parameter(torch.zeros(op.shape))
        self.magnitude = nn.Parameter(torch.zeros(op.shape))

    def forward(self, images: Tensor, generator: Generator) -> Tensor:
        """Images (B, C, H, W) in [0, 1] -> augmented ones, with a gradient towards theta.

        `generator` and the parameters are on the images' device.
        """
        bins = magnitude_bins(2, (images.shape[2], images.shape[3])).to(self.magnitude)
        log_pi = self.choice.log_softmax(0).expand(len(images), -1)
        noise = gumbel(log_pi, generator)
        drawn = discrete(log_pi, noise)
        out = images
        for k in range(self.op.shape[1]):
            op = self.op[drawn, k]
            logit = self.probability[drawn, k]
            z = logit + gumbel(logit, generator) - gumbel(logit, generator)  # logistic
            mu = self.magnitude[drawn, k].sigmoid()
            magnitude = with_random_sign(op, magnitude_between(bins, op, mu), generator)
            after = _straight(out, apply_ops(out, op, magnitude, mode="bilinear"), op, mu)
            fired = torch.where(_per_image(z > 0), after, out)
            out = fired + _gradient_only((z / self.tau).sigmoid(), after - out)
        w = relaxed(log_pi, noise, self.tau).gather(1, drawn[:, None])[:, 0]
        return out + _gradient_only(w, out)

    def discrete(self, keep: int) -> SubPolicies:
        """The `keep` likeliest sub-policies, in that order, with their probabilities as weights."""
        pi = self.choice.detach().softmax(0)
        best = pi.argsort(descending=True, stable=True)[:keep]
        columns = (self.op, self.probability.detach().sigmoid(), self.magnitude.detach().sigmoid())
        table = tuple(
            tuple((OPS[o], round(p, 3), round(mu, 3)) for o, p, mu in zip(*steps, strict=True))
            for steps in zip(*(column[best].tolist() for column in columns), strict=True)
        )
        return SubPolicies(table, tuple(round(chance, 5) for chance in pi[best].tolist()))


def _per_image(values: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, 1)"""
    return values[:, None, None, None]


def _gradient_only(weight: Tensor, change: Tensor) -> Tensor:
    """Zeros with the gradient that weight (B,) * change (B, C, H, W) has towards the weight."""
    return _per_image(weight - weight.detach()) * change.detach()


def _straight(before: Tensor, after: Tensor, op: Tensor, mu: Tensor) -> Tensor:
    """`after` (B, C, H, W), with straight-through gradients for the ops that have no derivative."""

    def is_one_of(names: Sequence[str]) -> Tensor:
        return _per_image(
            torch.isin(op, torch.tensor([OPS.index(n) for n in names], device=op.device))
        )

    passed = after.detach() + (before - before.detach())
    out = torch.where(is_one_of(STRAIGHT_IMAGE), passed, after)
    return out + torch.where(is_one_of(STRAIGHT_MAGNITUDE), _per_image(mu - mu.detach()), 0.0)
