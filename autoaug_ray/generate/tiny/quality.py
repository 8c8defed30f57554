"""How good the embedded models are, on images that they were not trained on.

    python -m autoaug_ray.generate.tiny.quality /usr/share/datasets/fashion-mnist [--sheets FOLDER]

Sources are of Fashion-MNIST's test part. A small CNN, trained on the real images of the
pre-training half, says which class an edited image shows; what share of real images it gets right
stands beside. Words are measured in the edited image itself (`attributes.py`). Edits and captions
are made by the package's own editor and captioner, as in a study.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from autoaug_ray import models
from autoaug_ray.data.arrays import FASHION_MNIST_CLASSES, read_fashion_mnist
from autoaug_ray.errors import exit_status
from autoaug_ray.generate.captions import Captioner
from autoaug_ray.generate.img2img import Editor, Job
from autoaug_ray.generate.settings import Generation
from autoaug_ray.generate.tiny import attributes
from autoaug_ray.generate.tiny.excerpt import halves
from autoaug_ray.generate.weights import EMBEDDED
from autoaug_ray.settings.classifier import Classifier

NAMES = FASHION_MNIST_CLASSES
PREFIX = Generation().prefix
CPU = torch.device("cpu")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("root", type=Path, help="folder with the IDX files")
    parser.add_argument("--models", type=Path, default=EMBEDDED)
    parser.add_argument("--per-class", type=int, default=30, help="sources of edits")
    parser.add_argument("--guidance", type=float, default=Generation().guidance)
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.4, 0.6, 0.8])
    parser.add_argument("--sheets", type=Path, help="folder for pictures of edits")
    args = parser.parse_args(argv)

    images, labels = read_fashion_mnist(args.root, train=True)
    half = halves(labels)[0]
    images, labels = images[half], labels[half]
    test_images, test_labels = read_fashion_mnist(args.root, train=False)
    judge = Judge(images, labels)
    right = judge.classes(test_images) == test_labels
    print(f"judge: {100 * right.mean():.1f} % of the {len(right)} real test images\n")

    if (args.models / "blip").is_dir():
        evaluate_captions(args.models / "blip", images, labels, test_images, test_labels)
    evaluate(
        args.models / "stable-diffusion", judge, test_images, test_labels,
        per_class=args.per_class, strengths=args.strengths, guidance=args.guidance,
        sheets=args.sheets,
    )  # fmt: skip
    return 0


class Judge:
    """The package's small CNN after three epochs of real images (n, 28, 28) uint8."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, epochs: int = 3) -> None:
        x, y = scaled(images), torch.from_numpy(labels.astype(np.int64))
        cnn = Classifier(width=32)
        self.model = models.build(cnn, len(NAMES), x.mean()[None], x.std()[None], seed=1)
        order, steps = torch.Generator().manual_seed(1), len(x) // 64
        optimiser = torch.optim.AdamW(self.model.parameters(), weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 5e-3, total_steps=steps * epochs)
        for _ in range(epochs):
            for index in torch.randperm(len(x), generator=order).split(64)[:steps]:
                loss = F.cross_entropy(self.model(x[index]), y[index])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
        self.model.eval()

    @torch.no_grad()
    def classes(self, images: np.ndarray) -> np.ndarray:
        out = [self.model(batch).argmax(1) for batch in scaled(images).split(500)]
        return torch.cat(out).numpy()

    @torch.no_grad()
    def spread(self, images: np.ndarray, labels: np.ndarray) -> float:
        """Mean distance of two images of a class, in the features before the last layer."""
        normalise, network = self.model.children()
        assert isinstance(network, nn.Sequential)
        features = network[:-1](normalise(scaled(images)))
        groups = [features[torch.from_numpy(labels == c)] for c in np.unique(labels)]
        return float(np.mean([float(F.pdist(g).mean()) for g in groups]))


def evaluate_captions(
    blip: Path, images: np.ndarray, labels: np.ndarray, test_images: np.ndarray,
    test_labels: np.ndarray, count: int = 1000,
) -> None:  # fmt: skip
    """Prints the share of right words, beside that of always giving the class's usual word."""
    captioner = Captioner(str(blip), device=CPU)
    x, y = test_images[:count], test_labels[:count]
    start = time.process_time()
    texts = captioner.continuations(torch.tensor(x)[:, None], [NAMES[c] for c in y], PREFIX)
    seconds = (time.process_time() - start) / count
    found, true = [attributes.parse(text) for text in texts], attributes.words(x)
    known = np.array(attributes.words(images))
    print(f"captions of {count} test images, {1000 * seconds:.1f} ms each   right %   usual word %")
    for k, attribute in enumerate(attributes.WORDS):
        usual = [most_common(known[labels == c, k]) for c in range(len(NAMES))]
        right = np.mean([f.get(attribute) == t[k] for f, t in zip(found, true, strict=True)])
        always = np.mean([usual[c] == t[k] for c, t in zip(y, true, strict=True)])
        print(f"  {attribute:42} {100 * right:10.1f} {100 * always:14.1f}")
    print()


def evaluate(
    diffusion: Path,
    judge: Judge,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    per_class: int,
    strengths: Sequence[float],
    guidance: float,
    sheets: Path | None = None,
) -> dict[str, dict[str, float]]:
    """Prints and returns a row per kind of edit: shares in [0, 1], spread, CPU seconds per image.

    local: edits by the caption of another image of the class. change: edits at strength 0.9 by the
    name of another class only. text: edits at strength 1, which leaves little of the source.
    """
    rng = np.random.default_rng(0)
    some = [rng.permutation(np.flatnonzero(labels == c))[:per_class] for c in range(len(NAMES))]
    x, y = images[np.concatenate(some)], np.repeat(np.arange(len(NAMES)), per_class)
    # Everybody's caption is that of the next one of the class.
    other = np.concatenate([np.roll(np.arange(per_class), 1) + per_class * c for c in range(10)])
    true = np.array(attributes.words(x))
    local = [attributes.caption(NAMES[c], list(w)) for c, w in zip(y, true[other], strict=True)]
    asked = (y + rng.integers(1, len(NAMES), len(y))) % len(NAMES)

    def row(edited: np.ndarray, classes: np.ndarray, seconds: float = 0.0) -> dict[str, float]:
        same = np.array(attributes.words(edited)) == true[other]
        return {
            "class": float((judge.classes(edited) == classes).mean()),
            **dict(zip(attributes.WORDS, same.mean(0).tolist(), strict=True)),
            "spread": judge.spread(edited, classes),
            "seconds": seconds,
        }

    rows = {"unedited": row(x, y)}
    pictures: dict[float, np.ndarray] = {}
    for strength in [*strengths, 1.0]:
        edited, seconds = edit(diffusion, x, local, strength, guidance)
        name = "text, 1.0" if strength == 1 else f"local, {strength}"
        rows[name] = row(edited, y, seconds)
        pictures[strength] = edited
    edited, seconds = edit(
        diffusion, x, [attributes.caption(NAMES[c], []) for c in asked], 0.9, guidance
    )
    rows["change, 0.9"] = row(edited, asked, seconds)
    pictures[0.9] = edited

    print(
        f"edits of {len(x)} test images, guidance {guidance}; words and class in %, spread, CPU s"
    )
    print(f"  {'':12}" + "".join(f"{column:>11}" for column in rows["unedited"]))
    for name, values in rows.items():
        *shares, spread, seconds = values.values()
        if name.startswith("change"):  # no words were asked for
            shares = shares[:1]
        cells = [f"{100 * share:11.1f}" for share in shares] + [" " * 11] * (5 - len(shares))
        print(f"  {name:12}{''.join(cells)}{spread:11.2f}{seconds:11.4f}")
    if sheets is not None:
        sheets.mkdir(parents=True, exist_ok=True)
        lines = []
        for c in range(len(NAMES)):
            first = slice(per_class * c, per_class * c + 6)
            lines.append(np.concatenate([x[first], *(p[first] for p in pictures.values())]))
        sheet(lines, sheets / "edits.png")
        words = [w for choices in attributes.WORDS.values() for w in choices]
        lines = []
        for c in range(len(NAMES)):
            source = x[per_class * c : per_class * c + 1]
            texts = [attributes.caption(NAMES[c], [w]) for w in words]
            edited, _ = edit(
                diffusion, source.repeat(len(words), 0), texts, 0.7, guidance, same_noise=True
            )
            lines.append(np.concatenate([source, edited]))
        sheet(lines, sheets / "words.png")
        print(f"{sheets}: edits.png (6 sources, then 6 of each row in turn), words.png ({words})")
    return rows


def edit(
    diffusion: Path,
    images: np.ndarray,
    prompts: Sequence[str],
    strength: float,
    guidance: float,
    same_noise: bool = False,
) -> tuple[np.ndarray, float]:
    """Edited images (n, 28, 28) uint8, and the CPU seconds that each took."""
    settings = Generation(model=str(diffusion.resolve()), strength=strength, guidance=guidance)
    editor = Editor(settings, device=CPU, batch_size=64)
    jobs = [
        Job(torch.from_numpy(image)[None], prompt, 0 if same_noise else i)
        for i, (image, prompt) in enumerate(zip(images, prompts, strict=True))
    ]
    start = time.process_time()
    edited = editor.edit(jobs)
    seconds = (time.process_time() - start) / len(jobs)
    return np.stack([e.image[0].numpy() for e in edited]), seconds


def scaled(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images.astype(np.float32) / 255)[:, None]


def most_common(values: np.ndarray) -> Any:
    different, counts = np.unique(values, return_counts=True)
    return different[counts.argmax()]


def sheet(lines: Sequence[np.ndarray], path: Path, scale: int = 2) -> None:
    """Each line's images (n, 28, 28) uint8 side by side, one below the other, as PNG."""
    rows = [np.concatenate(list(np.pad(line, ((0, 0), (1, 1), (1, 1)))), 1) for line in lines]
    picture = Image.fromarray(np.concatenate(rows))
    picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST).save(
        path
    )


if __name__ == "__main__":
    sys.exit(exit_status(main))
