"""Which of K versions of an image is used: the Gumbel trick, discrete and relaxed.

Notation (AutoGenDA, section 3.3; Jang et al. 2017), one row per sample:

    alpha (B, K)    probabilities of the versions; only their logarithm, log_alpha, is used
    g (B, K)        standard Gumbel noise
    tau             temperature of the relaxation
"""

import torch
from torch import Tensor


def gumbel(log_alpha: Tensor, generator: torch.Generator) -> Tensor:
    """g = -log(-log u), of the shape of log_alpha; `generator` is on log_alpha's device."""
    u = torch.rand(log_alpha.shape, generator=generator, device=log_alpha.device)
    tiny = torch.finfo(u.dtype).tiny
    exponential = -torch.log(u.clamp_min(tiny))
    return -torch.log(exponential.clamp_min(tiny))


def relaxed(log_alpha: Tensor, g: Tensor, tau: float) -> Tensor:
    """Weights (B, K) that add up to 1 in each row, with a gradient towards log_alpha (eq. 4)."""
    return torch.softmax((log_alpha + g) / tau, dim=1)


def discrete(log_alpha: Tensor, g: Tensor) -> Tensor:
    """Indices (B,), distributed as exp(log_alpha) (eq. 5, with the logarithm of eq. 4).

    As printed, eq. 5 adds the noise to alpha itself, which would not sample from it.
    """
    return (log_alpha + g).argmax(1)


def likelihood_ratio(log_alpha: Tensor, index: Tensor) -> Tensor:
    """Ones (B,) whose derivative is that of log alpha at `index` (B,), the drawn versions.

    Multiplied by the samples' losses, their mean has in expectation over the draws the derivative
    of the expected loss, without mixing the pixels of several versions.
    """
    log_p = log_alpha.gather(1, index[:, None]).squeeze(1)
    return torch.exp(log_p - log_p.detach())
