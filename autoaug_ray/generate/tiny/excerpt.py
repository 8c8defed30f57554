"""Make `fashion-mnist-mini.npz` from the full Fashion-MNIST files (MIT licence, Zalando SE).

    python -m autoaug_ray.generate.tiny.excerpt /usr/share/datasets/fashion-mnist

Debian's package `dataset-fashion-mnist` puts the full set there. The training half of the set is
cut in two disjoint, class-balanced halves: one is reserved for pre-training generative models, and
the excerpt's training pool is drawn from the other, so that no model ever sees an image twice.
"""

import sys
from pathlib import Path

import numpy as np

from autoaug_ray.data.arrays import read_fashion_mnist

POOL_PER_CLASS, TEST_PER_CLASS, SEED = 400, 200, 0


def halves(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the (pre-training, experiment) halves of the 60,000 training images."""
    rng = np.random.default_rng(SEED)
    per_class = [rng.permutation(np.flatnonzero(labels == c)) for c in range(10)]
    return (
        np.concatenate([i[: len(i) // 2] for i in per_class]),
        np.concatenate([i[len(i) // 2 :] for i in per_class]),
    )


def excerpt(root: Path) -> dict[str, np.ndarray]:
    """Arrays `{pool,test}_{images,labels,index}`; images uint8 (n, 28, 28), shuffled."""
    out: dict[str, np.ndarray] = {}
    for part, count in (("pool", POOL_PER_CLASS), ("test", TEST_PER_CLASS)):
        images, labels = read_fashion_mnist(root, train=part == "pool")
        allowed = halves(labels)[1] if part == "pool" else np.arange(len(labels))
        rng = np.random.default_rng(SEED)
        chosen = [rng.permutation(allowed[labels[allowed] == c])[:count] for c in range(10)]
        index = rng.permutation(np.concatenate(chosen))
        out |= {
            f"{part}_images": images[index],
            f"{part}_labels": labels[index],
            f"{part}_index": index.astype(np.uint16),
        }
    return out


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m autoaug_ray.generate.tiny.excerpt FOLDER_WITH_THE_IDX_GZ_FILES")
    target = Path(__file__).parents[2] / "data" / "fashion-mnist-mini.npz"
    np.savez_compressed(target, allow_pickle=False, **excerpt(Path(sys.argv[1])))
    print(f"{target.name}: {target.stat().st_size / 1e6:.2f} MB")
