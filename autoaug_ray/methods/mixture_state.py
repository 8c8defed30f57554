"""What a training keeps whose images are of several kinds: the proportions, and their learning."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autoaug_ray.maths.alignment import Average
from autoaug_ray.maths.gumbel import likelihood_ratio
from autoaug_ray.methods.base import Learning

SCORES = 100
"""Images of a class that its mean score is taken of: a plain mean at first, exponential later."""


class AlignmentState(nn.Module):
    """What alpha by alignment keeps from step to step."""

    class_weights: Tensor
    """(classes,) of meta images, by which all classes count alike in their mean loss."""
    mean_score: Tensor
    """(classes,) running mean of the scores of a class's images, of whatever kind."""
    scored: Tensor
    """(classes,) images that have been scored."""

    def __init__(self, class_weights: Tensor, memory: float) -> None:
        super().__init__()
        self.training_gradient = Average(memory)
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.register_buffer("mean_score", torch.zeros_like(class_weights))
        self.register_buffer("scored", torch.zeros_like(class_weights))

    def centred(self, score: Tensor, labels: Tensor) -> Tensor:
        """Scores (B,) less the running means of their classes (B,), which take them in first."""
        member = F.one_hot(labels, len(self.scored)).to(score)
        n = member.sum(0)
        self.scored += n
        mean = score @ member / n.clamp_min(1)
        share = n / self.scored.clamp(1, SCORES)
        self.mean_score.lerp_(mean, share.clamp_max(1))
        return score - self.mean_score[labels]

    def get_extra_state(self) -> dict[str, Any]:
        return self.training_gradient.state_dict()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.training_gradient.load_state_dict(state, self.scored.device)


def reinforce(log_alpha: Tensor, kind: Tensor, score: Tensor, logits: Tensor) -> Tensor:
    """sum_i score_i dlog alpha_i(kind_i)/dlogits, the way up to worse scores.

    log_alpha (B, kinds) was computed from the logits; kind (B,) was drawn from it; in expectation
    it is the derivative of the expected sum of scores, whatever constant each is centred by
    (Williams 1992).
    """
    (gradient,) = torch.autograd.grad((score * likelihood_ratio(log_alpha, kind)).sum(), logits)
    return gradient


class MixtureState(Learning):
    """The proportions of every class, and their optimiser while they are learned."""

    def __init__(self, alpha: Tensor, scores: AlignmentState | None = None) -> None:
        """alpha (classes, kinds): probabilities; `scores` if it is learned by alignment."""
        super().__init__()
        self.scores = scores
        self.logits = nn.Parameter(alpha.log().clamp_min(-1e4))

    @property
    def log_alpha(self) -> Tensor:
        """(classes, kinds)"""
        return torch.log_softmax(self.logits, dim=1)
