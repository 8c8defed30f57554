"""How generation scales with the number of Ray actors."""

import tempfile
from pathlib import Path
from typing import Annotated, Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from autoaug_ray import data
from autoaug_ray.bench import DATASET, Outcome
from autoaug_ray.generate.bank import Bank
from autoaug_ray.generate.plan import Pool
from autoaug_ray.generate.settings import Generation, Workers, of_all_classes

PER_SOURCE = 8  # edits of each image


def actors(
    most: Annotated[int, "actors; each has a core of its own"] = 2,
    shards: Annotated[int, "of equal size"] = 16,
    size: Annotated[int, "edits in a shard"] = 32,
) -> Outcome:
    """images per second of one generation actor and of several"""
    from autoaug_ray.schedule import cluster, fill_bank

    cluster.join(most)
    splits = data.load(DATASET, val_fraction=None, device="cpu")
    n = shards * size // PER_SOURCE
    train = splits.train.load()
    pool = Pool(train.images[:n], train.labels[:n], splits.classes)
    settings = Generation(per_source=PER_SOURCE, per_class=1)
    drawn = of_all_classes(["fixed"], len(pool.classes))
    rates = []
    for count in (1, most):
        with tempfile.TemporaryDirectory(prefix="autoaug-bench-") as root:
            bank = Bank(Path(root))
            workers = Workers(actors=count, shard_size=size)
            fill_bank.fill(bank, [pool], settings, workers, [drawn], lambda line: None)
            shard_names = {path.stem for path in bank.shards()}
            ends = sorted(line["at"] for line in bank.attempts() if line["run"] in shard_names)
        # An actor's first shard loads its models.
        rates.append((len(ends) - count) * size / (ends[-1] - ends[count - 1]))
    figures: dict[str, Any] = {
        "actors": most, "edits": shards * size, "images_per_second": rates,
        "speedup": rates[1] / rates[0],
    }  # fmt: skip
    table = Table(
        box=SIMPLE_HEAD, caption_justify="left",
        caption=f"{shards} shards of {size} edits, from each actor's first whole shard to the end.",
    )  # fmt: skip
    for name in ("actors", "images/s", "times one actor"):
        table.add_column(name, justify="right")
    for count, rate in zip((1, most), rates, strict=True):
        table.add_row(str(count), f"{rate:.1f}", f"{rate / rates[0]:.2f}")
    return Outcome(figures, [table])
