"""The command: a benchmark by its name, its tables on the screen, its figures in a file."""

import argparse
import inspect
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from rich.console import Console

from autoaug_ray import bench as package
from autoaug_ray.bench import Outcome
from autoaug_ray.bench.actors import actors
from autoaug_ray.bench.alpha import alpha
from autoaug_ray.bench.augment import augment
from autoaug_ray.bench.costs import costs
from autoaug_ray.bench.decode import decode
from autoaug_ray.bench.faults import faults
from autoaug_ray.bench.generate import forecast, generate
from autoaug_ray.bench.hypergradient import hypergradient
from autoaug_ray.bench.memory import memory
from autoaug_ray.bench.meter import meter
from autoaug_ray.bench.neighbours import neighbours
from autoaug_ray.bench.scale import scale
from autoaug_ray.bench.signal import signal
from autoaug_ray.bench.tune import tune
from autoaug_ray.errors import StorageError, UserError, exit_status
from autoaug_ray.store.files import write_whole

BENCHES: dict[str, Callable[..., Outcome]] = {
    "actors": actors,
    "alpha": alpha,
    "augment": augment,
    "costs": costs,
    "decode": decode,
    "faults": faults,
    "hypergradient": hypergradient,
    "memory": memory,
    "meter": meter,
    "neighbours": neighbours,
    "tune": tune,
    "scale": scale,
    "signal": signal,
    "generate": generate,
    "forecast": forecast,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 a run failed, 2 wrong input, 130 interrupted; or that of
    the command that a benchmark has run."""
    options = vars(_parser().parse_args(arguments))
    name, path = options.pop("bench"), options.pop("json")
    threads = options.pop("threads")

    def work() -> int:
        if path is not None and path.is_dir():
            raise UserError(f"--json {path} is a folder; name a file.")
        for option, value in {**options, "threads": threads}.items():
            if isinstance(value, int | float) and value <= 0:
                raise UserError(f"--{option} must be above 0, got {value}.")
        torch.set_num_threads(threads)
        outcome = BENCHES[name](**options)
        for table in outcome.tables:
            Console().print(table)
        if path is not None:
            about = {"bench": name, "torch": torch.__version__, "threads": torch.get_num_threads()}
            _write(path, about | outcome.figures)
        return outcome.status

    return exit_status(work)


def _write(path: Path, figures: Mapping[str, Any]) -> None:
    try:
        write_whole(path, json.dumps(figures, indent=1).encode())
    except StorageError as error:
        raise UserError(f"--json {error}") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m autoaug_ray.bench",
        description=package.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = parser.add_subparsers(dest="bench", metavar="NAME", required=True)
    for name, bench in BENCHES.items():
        one = names.add_parser(name, help=bench.__doc__, description=bench.__doc__)
        one.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
        one.add_argument(
            "--threads", type=int, default=1, metavar="N",
            help="of torch in this process (default: 1, as a trial that holds one CPU)",
        )  # fmt: skip
        for option in inspect.signature(bench).parameters.values():
            kind, text = get_args(option.annotation)
            if option.default is None:  # int | None: its text says what that means
                kind = get_args(kind)[0]
            else:
                text = f"{text} (default: {option.default})"
            one.add_argument(
                f"--{option.name}", type=kind, default=option.default,
                metavar=kind.__name__.upper(), help=text,
            )  # fmt: skip
    return parser


if __name__ == "__main__":
    sys.exit(main())
