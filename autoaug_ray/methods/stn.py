"""The transformation-invariant baseline: a network that learns from the training loss."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from autoaug_ray.data import Split
from autoaug_ray.errors import UserError
from autoaug_ray.learner import Learner
from autoaug_ray.maths import plans
from autoaug_ray.maths.augmenter import BOUNDS, parameter_names, transform
from autoaug_ray.maths.strength import Strength
from autoaug_ray.methods.base import Learning, NextMeta, Task, as_float
from autoaug_ray.methods.stage import Staged


class Localisation(nn.Module):
    """Images (B, C, H, W) -> parameters (B, P) within their bounds; the identity at first."""

    bounds: Tensor

    def __init__(self, channels: int, names: tuple[str, ...]) -> None:
        super().__init__()
        self.names = names
        self.features = nn.Sequential(
            nn.Conv2d(channels, 8, 5, stride=2, padding=2), nn.ReLU(),
            nn.Conv2d(8, 16, 5, stride=2, padding=2), nn.ReLU(),
            nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, 32), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(32, len(names))
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("bounds", torch.tensor([BOUNDS[n] for n in names]))

    def forward(self, images: Tensor) -> Tensor:
        return self.bounds * torch.tanh(self.head(self.features(images)))


class STNState(Learning):
    optimiser: torch.optim.Optimizer

    def __init__(self, network: Localisation, lr: float) -> None:
        super().__init__()
        self.network = network
        self.optimiser = torch.optim.Adam(network.parameters(), lr=lr)


class STN(Staged):
    """Spatial transformer (Jaderberg et al. 2015), Table 1's transformation-invariant row.

    Trained by the training loss together with the classifier, and applied at test time too.
    """

    name: Literal["stn"] = "stn"
    group: Literal["translation", "affine"] = "affine"
    """Which transformations the localisation network predicts."""
    lr: float = Field(1e-3, gt=0, le=1)
    """Learning rate of the localisation network."""

    def init(self, task: Task, seed: int, device: torch.device) -> STNState:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = Localisation(task.channels, parameter_names(self.group, task.channels))
        return STNState(network.to(device), self.lr)

    def transform(
        self,
        state: STNState,
        images: Tensor,
        noise: torch.Generator,
        strength: Strength | None = None,
    ) -> Tensor:
        return self._align(state, images, strength)

    def transform_plan(self, state: STNState, task: Task) -> list[plans.Stage]:
        raise UserError(
            "stn looks at each image to say how it is moved, also at test time, which no plain "
            "transform can."
        )

    def _align(self, state: STNState, images: Tensor, strength: Strength | None = None) -> Tensor:
        return transform(images, state.network(images), state.network.names, strength)

    def step(
        self, learner: Learner, batch: Split, next_meta: NextMeta, state: STNState
    ) -> dict[str, Tensor]:
        images = self.augment(state, as_float(batch.images), learner.noise)
        state.optimiser.zero_grad()
        loss = learner.train_on(images, batch.labels)
        state.optimiser.step()
        return {"train_loss": loss}

    def predict(self, learner: Learner, images: Tensor, state: STNState) -> Tensor:
        return learner.logits(self._align(state, images))
