"""A policy in a plain PyTorch loop, where it takes whole batches on the device of the training.

    python -m autoaug_ray.examples.with_dataloader POLICY FOLDER

POLICY is the policy.pt of a finished run, FOLDER has a folder of colour images for each class. The
policy comes before the normalisation.
"""

import sys

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets, models
from torchvision.transforms import v2

from autoaug_ray import load_policy


def train(policy_file: str, folder: str, *, size: int = 64, epochs: int = 1) -> float:
    """Train a ResNet-18; returns the mean loss of the last epoch."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    policy = load_policy(policy_file)
    prepare = v2.Compose([v2.Resize((size, size)), v2.PILToTensor()])
    images = datasets.ImageFolder(folder, prepare)
    batches = DataLoader(images, batch_size=32, shuffle=True)
    to_float = v2.ToDtype(torch.float32, scale=True)
    normalise = v2.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    model = models.resnet18(num_classes=len(images.classes)).to(device)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    for epoch in range(epochs):
        total = 0.0
        for x, labels in batches:
            x = normalise(to_float(policy(x.to(device))))  # uint8 (B, 3, H, W) in and out
            loss = nn.functional.cross_entropy(model(x), labels.to(device))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += len(x) * loss.item()
        mean = total / len(images)
        print(f"epoch {epoch + 1}: loss {mean:.3f}")
    return mean


if __name__ == "__main__":
    train(*sys.argv[1:])
