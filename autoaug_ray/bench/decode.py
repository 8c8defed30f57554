"""The speed at which images that do not fit in memory come from their files."""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from PIL import Image
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from autoaug_ray import data
from autoaug_ray.bench import Outcome
from autoaug_ray.data.files import ImageFiles
from autoaug_ray.store import meter as metering

WIDTH, HEIGHT = 500, 400
"""The size of the files in pixels, about ImageNet's mean."""
BATCH = 32


class Decoded(TorchDataset[torch.Tensor]):
    """The reader as a dataset for a DataLoader's workers."""

    def __init__(self, read: ImageFiles) -> None:
        self.read = read

    def __len__(self) -> int:
        return len(self.read.paths)

    def __getitem__(self, position: int) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(self.read(position)))


def photographs(folder: Path, count: int) -> list[Path]:
    """Writes JPEGs of smooth shapes with some noise, as large on disk as photographs are."""
    rng = np.random.default_rng(0)
    paths = []
    for i in range(count):
        coarse = rng.integers(0, 255, (10, 12, 3), dtype=np.uint8)
        smooth = Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        noisy = np.array(smooth, dtype=np.int16) + rng.integers(-12, 13, (HEIGHT, WIDTH, 1))
        paths.append(folder / f"{i}.jpg")
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(paths[-1], quality=90)
    return paths


def decode(
    *,
    images: Annotated[int, "JPEG files, made for this"] = 500,
    size: Annotated[int, "side in pixels to which they are read"] = 256,
    rounds: Annotated[int, "over all images with each, after one to warm up"] = 3,
) -> Outcome:
    """Images a second from files: drawn ahead on threads, and by a DataLoader's processes.

    With --threads as many threads and as many processes.
    """
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory(prefix="autoaug-bench-") as root:
        read = ImageFiles(photographs(Path(root), images), size, fit="crop")
        megabytes = sum(Path(path).stat().st_size for path in read.paths) / images / 1e6
        stored = read.stored(0, [0] * images)
        # Spawned, as a process in which threads decode must not be forked.
        loader = DataLoader(
            Decoded(read), batch_size=BATCH, shuffle=True, num_workers=threads,
            persistent_workers=True, multiprocessing_context="spawn",
        )  # fmt: skip

        def drawn() -> Iterator[int]:
            order = torch.randperm(images).split(BATCH)
            # No more than a round's: none of the next is decoded while the other way is timed.
            parts = iter(order)
            take = data.draws(stored, lambda n: next(parts, order[0][:0]))
            return (len(take(len(part)).images) for part in order)

        def loaded() -> Iterator[int]:
            return (len(batch) for batch in loader)

        ways: dict[str, Callable[[], Iterator[int]]] = {
            "Stored, threads": drawn, "DataLoader, processes": loaded,
        }  # fmt: skip
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(rounds + 1):
            for name, way in ways.items():
                begin = time.perf_counter()
                count = sum(way())
                if turn:
                    rates[name].append(count / (time.perf_counter() - begin))
    first, second = rates.values()
    figures = {
        "device": metering.device_name(torch.device("cpu")), "images": images, "size": size,
        "file_megabytes": megabytes, "rates": rates,
        "ratio": statistics.median(a / b for a, b in zip(first, second, strict=True)),
    }  # fmt: skip
    return Outcome(figures, [_table(figures, threads)])


def _table(f: Mapping[str, Any], threads: int) -> Table:
    table = Table(
        box=SIMPLE_HEAD,
        title=f"{f['images']} JPEGs of {WIDTH}x{HEIGHT}, {f['file_megabytes'] * 1000:.0f} kB each, "
        f"read to {f['size']}x{f['size']} in batches of {BATCH}",
        caption=f"{threads} of each. Round by round, threads bring {f['ratio']:.2f} times as many "
        "(median).",
    )
    for name in ("images a second", "median", "lowest", "highest"):
        table.add_column(name, justify="left" if name == "images a second" else "right")
    for name, rates in f["rates"].items():
        numbers = statistics.median(rates), min(rates), max(rates)
        table.add_row(name, *(f"{rate:.0f}" for rate in numbers))
    return table
