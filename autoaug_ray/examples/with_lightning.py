"""A policy in a LightningModule, which augments training batches once they are on the device.

    pip install lightning
    python -m autoaug_ray.examples.with_lightning POLICY FOLDER

POLICY is the policy.pt of a finished run, FOLDER has train/ and test/, each with a folder of colour
images for each class.
"""

import sys
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import datasets, models
from torchvision.transforms import v2

from autoaug_ray import load_policy


class Classifier(lightning.LightningModule):
    """A ResNet-18 that sees augmented images while it trains, and plain ones else."""

    def __init__(self, policy_file: str, classes: int) -> None:
        super().__init__()
        self.policy = load_policy(policy_file)  # it has no parameters: no checkpoint holds it
        self.network = models.resnet18(num_classes=classes)
        self.normalise = v2.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        images, labels = batch
        if self.trainer.training:
            images = self.policy(images)
        return self.normalise(images), labels

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        images, labels = batch
        loss = nn.functional.cross_entropy(self.network(images), labels)
        self.log("train_loss", loss)
        return loss

    def test_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        images, labels = batch
        right = self.network(images).argmax(1) == labels
        self.log("test_accuracy", right.float().mean(), batch_size=len(labels))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)


def train(policy_file: str, folder: str, *, size: int = 64, **options: Any) -> float:
    """Train and test; returns the test accuracy in [0, 1]. `options` are those of the Trainer."""
    prepare = v2.Compose(
        [v2.Resize((size, size)), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)]
    )
    parts = {p: datasets.ImageFolder(str(Path(folder) / p), prepare) for p in ("train", "test")}
    loaders = {
        part: DataLoader(images, batch_size=32, shuffle=part == "train")
        for part, images in parts.items()
    }
    model = Classifier(policy_file, len(parts["train"].classes))
    trainer = lightning.Trainer(**{"max_epochs": 1} | options)
    trainer.fit(model, loaders["train"])
    (found,) = trainer.test(model, loaders["test"])
    accuracy: float = found["test_accuracy"]
    return accuracy


if __name__ == "__main__":
    train(*sys.argv[1:])
