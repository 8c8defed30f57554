"""Weights and soft labels of augmented samples, by their alignment with a validation gradient.

Ding et al., "SAFLEX: Self-Adaptive Augmentation via Feature Label Extrapolation", ICLR 2024 (arXiv
2410.02512). The paper poses a bilevel problem: the classifier descends on augmented samples with
weights and soft labels, and these are chosen so that the loss of validation images falls. It is
solved online, greedily, batch by batch, by a linear programme that matches gradients.

The notation is that of `maths.alignment`: v = dL_v/dw is the gradient of the validation (meta) loss
at the classifier's weights w. Sample i of an augmented batch of B has a weight s_i in [0, 1] and a
label y_i, probabilities over the classes k; p_k(x) is the classifier's probability of class k. One
step of SGD on the training loss

    L_t = -1/B sum_i s_i sum_k y_ik log p_k(x_i)

changes the validation loss, to first order in the learning rate lr, by

    <v, w' - w> = -lr/B sum_i s_i sum_k y_ik a_ik    with a_ik = <-v, dlog p_k(x_i)/dw>.

a_ik, the alignment, says how fast the log probability of class k rises for sample i if w goes down
the validation gradient. It is the directional derivative of the logits along -v, less its mean
under p, and costs one more forward pass, as a difference:

    a_ik = (log p_k(x_i; w - eps v) - log p_k(x_i; w)) / eps.

The objective is linear in y_i and, given y_i, in s_i, so that both solutions lie in corners: the
label is the class of the largest a_ik, and the weight is 1 where sum_k y_ik a_ik >= 0, otherwise 0.
A label from one validation batch is noise, so two terms hold it: a prior beta for the label that
the sample came with, and the entropy H of the label, at a temperature tau,

    y_i = argmax_y sum_k y_k (a_ik / r + beta [k is the label]) + tau H(y)
        = softmax((a_i / r + beta onehot(label)) / tau).

Here r is the root mean square of the batch's alignments, without which tau and beta would mean
something else at every stage of a training: gradients shrink by orders.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def alignments(before: Tensor, after: Tensor, eps: Tensor) -> Tensor:
    """a (B, classes) from the logits (B, classes) at w and at w - eps v, for a small eps ()."""
    return (after.log_softmax(dim=1) - before.log_softmax(dim=1)) / eps


def soft_labels(a: Tensor, labels: Tensor, prior: float, temperature: float) -> Tensor:
    """y (B, classes): the best labels for alignments a (B, classes), given those that the samples
    came with (B,).

    `prior` is beta and `temperature` tau, in units of the root mean square of a. At temperature 0,
    a label is one class. Where nothing is aligned with anything, the prior alone decides.
    """
    r = a.square().mean().sqrt()
    given = F.one_hot(labels, a.shape[1]).to(a.dtype)
    score = a / r.clamp_min(torch.finfo(a.dtype).tiny) + prior * given
    if temperature == 0:
        return F.one_hot(score.argmax(dim=1), a.shape[1]).to(a.dtype)
    return (score / temperature).softmax(dim=1)


def weights(a: Tensor, y: Tensor) -> Tensor:
    """s (B,): 1 for a sample whose label y (B, classes) is aligned with -v, 0 for one against."""
    return ((y * a).sum(dim=1) >= 0).to(a.dtype)


def targets(y: Tensor, s: Tensor) -> Tensor:
    """(B, classes): B s_i y_i / sum_j s_j, all 0 if all weights (B,) are.

    The mean cross-entropy to them is the weighted mean of the samples' own: the step does not get
    shorter because fewer samples are left.
    """
    return y * (s * len(s) / s.sum().clamp_min(1))[:, None]
