"""The classifier's side of training: one update rule, for the trainer and for the look-ahead."""

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from autoaug_ray.errors import RunError, UserError
from autoaug_ray.maths.hypergradient import SQUARE, Loss, Parts, Rule
from autoaug_ray.maths.recompute import blocks, recomputed
from autoaug_ray.maths.workers import ALONE, Workers
from autoaug_ray.recipe import averaged, groups_of, optimiser_of, rate, rule_of
from autoaug_ray.settings.training import Training

FEW = 8
"""Images that tell a classifier that is alive, at once."""
Criterion = Callable[[Tensor, slice], Tensor]
"""Logits (b, classes) of a part of a batch, and which part that is -> their mean loss ()."""


class Learner:
    """Model and optimiser, with the learning rate of the present step."""

    def __init__(
        self,
        model: nn.Module,
        training: Training,
        *,
        total_steps: int,
        noise: torch.Generator,
        workers: Workers = ALONE,
    ) -> None:
        """`noise` is the stream of the augmentations, on the model's device; `workers` share the
        work of each batch. Raises UserError for a model that has nothing to recompute, or no order
        of blocks for layer-wise rates."""
        self.workers = workers
        self.model, self.training, self.noise = model, training, noise
        self.total_steps, self.steps_done = total_steps, 0
        self._groups = groups_of(model, training)
        self.optimiser = optimiser_of(model, self._groups, training)
        self.ema = None if training.ema is None else averaged(model, training.ema)
        self._forward = torch.compile(model) if training.compile else model
        self._blocks = blocks(model) if training.recompute else []
        if training.recompute and not self._blocks:
            raise UserError(
                "train.recompute: true needs a classifier of residual blocks, as resnet8, "
                "wrn-28-10 or torchvision:resnet50; this one has none."
            )

    @property
    def rule(self) -> Rule:
        """The update that `descend` and `apply` will do at this step, as a pure function."""
        return rule_of(self.optimiser, self._groups, self.steps_done + 1)

    @property
    def used(self) -> Training:
        """`training`, with the values that the optimiser really has."""
        group = self.optimiser.param_groups[0]
        values: dict[str, Any] = {"optimiser": type(self.optimiser).__name__.lower()}
        values |= {k: group[k] for k in ("momentum", "weight_decay", "nesterov") if k in group}
        return self.training.model_copy(update=values)

    @property
    def progress(self) -> float:
        """Share of the training's steps that are done, in [0, 1) before each step."""
        return self.steps_done / self.total_steps

    def begin_step(self) -> None:
        """Sets the learning rate of the next step."""
        t = (self.steps_done + 0.5) / self.total_steps
        lr = self.training.lr * rate(self.training, t)
        for group, of_torch in zip(self._groups, self.optimiser.param_groups, strict=True):
            of_torch["lr"] = group.share * lr

    def end_step(self) -> None:
        """Takes the weights into their average, if there is one, and counts the step."""
        if self.ema is not None:
            self.ema.update_parameters(self.model)
        self.steps_done += 1

    @contextlib.contextmanager
    def evaluated(self) -> Iterator[None]:
        """In it, the model is in evaluation mode; where an average is kept, it has the averaged
        weights and statistics in the place of its own."""
        own = None if self.ema is None else copy.deepcopy(self.model.state_dict())
        if self.ema is not None:
            self.model.load_state_dict(self.ema.module.state_dict())
        self.model.eval()
        try:
            yield
        finally:
            self.model.train()
            if own is not None:
                self.model.load_state_dict(own)

    @torch.no_grad()
    def check_alive(self, images: Tensor) -> None:
        """Raises RunError if the classifier tells no image (B, C, H, W) from another.

        So it is when no unit of some layer answers to anything, which no method can mend.
        """
        with self.evaluated():
            for some in (images[:FEW], images):  # a few of them tell, unless it is dead
                logits = self._forward(some)
                if bool((logits != logits[:1]).any()):
                    return
        if bool((images != images[:1]).any()):
            raise RunError(
                "the classifier gives all images the same logits: its units are dead; lower "
                f"train.lr ({self.training.lr:g})."
            )

    def logits(self, images: Tensor) -> Tensor:
        """(B, classes) fp32 for images (B, C, H, W) in [0, 1], with the settings' precision and
        compilation."""
        bf16 = self.training.precision == "bf16"
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            out: Tensor = self._forward(images)
        return out.float()

    def cross_entropy(self, logits: Tensor, labels: Tensor, *, each: bool = False) -> Tensor:
        """What trains the classifier: the cross-entropy of logits (B, classes) to labels (B,), with
        the training's label smoothing; its mean (), or that of `each` sample (B,)."""
        return F.cross_entropy(
            logits, labels, reduction="none" if each else "mean",
            label_smoothing=self.training.label_smoothing,
        )  # fmt: skip

    def descend(self, loss: Tensor) -> None:
        """One optimiser step on `loss` (); leaves other than the weights get gradients, too.

        Raises RunError if batches are to be worked off in parts, which a finished loss cannot be.
        """
        if self.training.accumulate > 1:
            raise RunError(
                f"train.accumulate: {self.training.accumulate} needs a method whose step calls "
                "learner.train_on(images, labels) in the place of learner.descend(loss)."
            )
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()

    def train_on(
        self, images: Tensor, labels: Tensor, criterion: Criterion | None = None
    ) -> Tensor:
        """One optimiser step on the mean `cross_entropy` () to labels (B,), or on what `criterion`
        has in its place; returns that loss.

        Leaves from which the images (B, C, H, W) in [0, 1] were computed get gradients, too.
        `criterion` is asked about each part of the batch that this process works off.
        """
        loss = self.backward(images, labels, criterion)
        self.optimiser.step()
        return loss

    def backward(
        self, images: Tensor, labels: Tensor, criterion: Criterion | None = None
    ) -> Tensor:
        """`train_on` but for its last act: the weights have gradients and stay as they are."""
        criterion = criterion or (lambda logits, part: self.cross_entropy(logits, labels[part]))
        self.optimiser.zero_grad()
        if self.training.accumulate == 1:
            loss = criterion(self.logits(images), slice(None))
            loss.backward()
            return loss.detach()
        # The graph of what made the images is gone through once, after all parts.
        pixels = images.detach().requires_grad_(images.requires_grad)
        total = torch.zeros((), device=images.device)
        for part, share in self.parts(len(images)):
            loss = share * criterion(self.logits(pixels[part]), part)
            loss.backward()
            total = total + loss.detach()
        learning = [*self.weights().values(), *([pixels] if images.requires_grad else [])]
        found = [torch.zeros_like(t) if t.grad is None else t.grad for t in learning]
        total, *found = self.workers.total([total, *found])
        for tensor, gradient in zip(learning, found, strict=True):
            tensor.grad = gradient
        if images.requires_grad:
            images.backward(pixels.grad)
        return total

    def parts(self, n: int) -> list[tuple[slice, float]]:
        """The parts of a batch of n images that this process works off, each with its share of the
        batch.

        They have the same size but for one image, and at least two images: batch norm takes its
        statistics in each part by itself.
        """
        number = max(1, min(self.training.accumulate, n // 2))
        ends = [n * i // number for i in range(number + 1)]
        return self.workers.share([(slice(a, b), (b - a) / n) for a, b in pairwise(ends)])

    def share_statistics(self) -> None:
        """Give every process the mean of what batch norm has seen in all of them."""
        if self.workers.size > 1:
            models = [self.model] if self.ema is None else [self.model, self.ema]
            buffers = [b for m in models for b in m.buffers() if b.is_floating_point()]
            for buffer, total in zip(buffers, self.workers.total(buffers), strict=True):
                buffer.copy_(total / self.workers.size)

    def apply(self, gradients: Mapping[str, Tensor]) -> None:
        """One optimiser step with gradients that were computed elsewhere."""
        for name, parameter in self.weights().items():
            parameter.grad = gradients[name]
        self.optimiser.step()

    def gradients(self) -> dict[str, Tensor]:
        """Those of `weights`, of the last backward pass; zeros where it did not arrive."""
        return {
            k: torch.zeros_like(p) if p.grad is None else p.grad for k, p in self.weights().items()
        }

    @property
    def same_precision(self) -> bool:
        """Whether `logits_at` computes what `logits` does, to the last rounding."""
        return self.training.precision == self.training.hypergradient_precision

    def weights(self) -> dict[str, Tensor]:
        """The parameters that learn, by name: with a frozen backbone, those of the last layer."""
        return {k: p for k, p in self.model.named_parameters() if p.requires_grad}

    def buffers(self) -> dict[str, Tensor]:
        """The optimiser's buffers under the names that `rule` uses; zeros before the first step."""
        suffixes = {"momentum_buffer": ""}
        if isinstance(self.optimiser, torch.optim.Adam):
            suffixes = {"exp_avg": "", "exp_avg_sq": SQUARE}
        return {
            name + suffix: self.optimiser.state[p].get(kind, torch.zeros_like(p)).detach()
            for name, p in self.weights().items()
            for kind, suffix in suffixes.items()
        }

    def loss_at(
        self,
        images: Tensor | Callable[[slice], Tensor],
        labels: Tensor,
        *,
        weights: Tensor | None = None,
        real_pass: bool = False,
        smoothed: bool = False,
    ) -> Loss:
        """The loss () as a function of the model's weights, for the look-ahead.

        `images` (B, C, H, W) in [0, 1], or what makes a part of them anew at every call; `labels`
        (B,); `weights` (B,) multiply the samples' losses. A loss that is worked off in parts is
        `Parts`, which `maths.hypergradient` knows how to differentiate.

        Batch norm's statistics stay as they are, but for the first call to each part of the
        `real_pass`. `smoothed`: with the training's label smoothing, as `cross_entropy` has it; it
        is for training batches, and a meta loss has none.
        """
        smoothing = self.training.label_smoothing if smoothed else 0.0

        def term(part: slice, share: float) -> Loss:
            real = real_pass

            def loss(w: Mapping[str, Tensor]) -> Tensor:
                nonlocal real
                x = images(part) if callable(images) else images[part]
                logits = self.logits_at(x, w, real_pass=real)
                real = False
                cross_entropy = partial(F.cross_entropy, label_smoothing=smoothing)
                if weights is None:
                    return share * cross_entropy(logits, labels[part])
                each = cross_entropy(logits, labels[part], reduction="none")
                return share * (weights[part] * each).mean()

            return loss

        terms = [term(part, share) for part, share in self.parts(len(labels))]
        if self.training.accumulate == 1:
            return terms[0]
        return Parts(terms, self.workers.total)

    def logits_at(
        self, images: Tensor, weights: Mapping[str, Tensor], *, real_pass: bool = False
    ) -> Tensor:
        """(B, classes) for images (B, C, H, W) in [0, 1], at other weights than the model's and
        with the precision of hypergradients.

        functional_call would write batch-norm statistics into the model, and so leak meta images
        into the classifier: all but a `real_pass` work on copies of the buffers.
        """
        buffers = {} if real_pass else {k: b.clone() for k, b in self.model.named_buffers()}
        bf16 = self.training.hypergradient_precision == "bf16"
        half = torch.autocast(images.device.type, torch.bfloat16, enabled=bf16)
        with half, recomputed(self._blocks):
            logits: Tensor = functional_call(self.model, {**weights, **buffers}, (images,))
        return logits.float() if bf16 else logits

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "steps_done": self.steps_done,
            "noise": self.noise.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        # A copy: torch would share the momentum buffers with `state`.
        self.optimiser.load_state_dict(copy.deepcopy(state["optimiser"]))
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.steps_done = state["steps_done"]
        self.noise.set_state(state["noise"].cpu())
