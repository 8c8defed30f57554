"""A policy with the Trainer of transformers, where it stands among the transforms of a dataset.

    python -m autoaug_ray.examples.with_trainer POLICY FOLDER google/vit-base-patch16-224-in21k

POLICY is the policy.pt of a finished run, FOLDER has train/ and test/, each with a folder of colour
images for each class, and the last argument is a network by hub id or folder.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision import datasets
from torchvision.transforms import v2
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    Trainer,
    TrainingArguments,
)

from autoaug_ray import load_policy


def train(policy_file: str, folder: str, network: str, **options: Any) -> float:
    """Fine-tune and test; returns the test accuracy in [0, 1]. `options` are TrainingArguments."""
    policy = load_policy(policy_file)
    processor = AutoImageProcessor.from_pretrained(network, trust_remote_code=False)
    side = processor.size.get("height") or processor.size["shortest_edge"]
    first = [v2.Resize((side, side))]
    last = [
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(processor.image_mean, processor.image_std),
    ]
    training = datasets.ImageFolder(
        str(Path(folder) / "train"), v2.Compose([*first, policy, *last])
    )
    test = datasets.ImageFolder(str(Path(folder) / "test"), v2.Compose([*first, *last]))
    model = AutoModelForImageClassification.from_pretrained(
        network,
        num_labels=len(training.classes),
        ignore_mismatched_sizes=True,
        use_safetensors=True,
        trust_remote_code=False,
    )
    arguments: dict[str, Any] = {
        "output_dir": "trainer", "num_train_epochs": 3, "per_device_train_batch_size": 32,
        "learning_rate": 5e-5, "report_to": "none", "remove_unused_columns": False,
    }  # fmt: skip
    trainer = Trainer(
        model,
        TrainingArguments(**arguments | options),
        data_collator=collate,
        train_dataset=training,
        eval_dataset=test,
        compute_metrics=accuracy,
    )
    trainer.train()
    found: float = trainer.evaluate()["eval_accuracy"]
    return found


def collate(samples: list[tuple[Tensor, int]]) -> dict[str, Tensor]:
    """(image (3, H, W), label) of each sample -> a batch as the network takes it."""
    images, labels = zip(*samples, strict=True)
    return {"pixel_values": torch.stack(images), "labels": torch.tensor(labels)}


def accuracy(predicted: Any) -> dict[str, float]:
    right = predicted.predictions.argmax(1) == predicted.label_ids
    return {"accuracy": float(right.mean())}


if __name__ == "__main__":
    print(train(*sys.argv[1:]))
