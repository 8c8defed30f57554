"""One attempt at one run, in a worker process of Ray Tune."""

import tempfile
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoaug_ray.schedule import cluster  # noqa: F401  before ray: it sets what ray reads

# isort: split
import ray
import torch
from ray import tune

from autoaug_ray import own_code, policy, train
from autoaug_ray.config import Run
from autoaug_ray.errors import RunError, StorageError, UserError
from autoaug_ray.generate.bank import shared_bank
from autoaug_ray.schedule.memory import does_not_fit
from autoaug_ray.schedule.share import Part, WorkerLost, shared
from autoaug_ray.schedule.ship_data import Handed, take
from autoaug_ray.store.files import load_state, save_state
from autoaug_ray.store.folder import Folder
from autoaug_ray.store.meter import Meter, out_of_memory
from autoaug_ray.store.places import place

CHECKPOINT_SHARE = 0.02
"""Share of a run's time that saving its state may take, besides where a scheduler needs it."""
REUSE_ACTORS = True
"""Whether a process may train one run after the other: it need not import torch anew."""


def trial(config: dict[str, Any], *, bank: str | None, handed: list[Handed] | None) -> None:
    """One attempt at one run, in a process that may have run others before.

    `handed` holds the datasets that the driver has sent; None where this process reads the files.
    """
    own_code.receive(config.get("code", {}))
    asked = Run.model_validate_json(config["run"])
    torch.set_num_threads(max(1, int(config["cpus"])))
    device = torch.device("cuda" if config["gpus"] > 0 else "cpu")
    if device.type == "cuda" and config["gpus"] < 1:
        torch.cuda.set_per_process_memory_fraction(config["gpus"])
    share = config["workers"] * (config["gpus"] if device.type == "cuda" else config["cpus"])
    try:
        _train(config, asked, device, share, bank, handed)
    except WorkerLost:
        raise  # Tune makes another attempt
    except Exception as error:
        # The same would happen again: only a process that dies is worth another attempt.
        report = {
            "label": asked.label,
            "epoch": 0,
            "score": 0.0,
            "error": _error_text(error, asked, device),
        }
        tune.report(report | {"storage": isinstance(error, StorageError)})
    if device.type == "cuda":
        torch.cuda.empty_cache()  # others may share the device, while this process waits


def _train(
    config: Mapping[str, Any],
    asked: Run,
    device: torch.device,
    share: float,
    bank: str | None,
    handed: list[Handed] | None,
) -> None:
    folder = Folder(place(config["root"]))
    folder.check()
    attempt = _Attempt(asked, folder, config.get("gene"))
    about = {"label": asked.label, "phase": asked.phase, "seed": asked.seed}
    about["node"] = ray.get_runtime_context().get_node_id()
    number = config["workers"]
    with Meter(
        folder.ledger, key=asked.key, about=about, device=device, share=share, workers=number
    ) as meter:
        if handed is not None:
            take(asked.dataset, handed)
        images = shared_bank(bank) if bank and asked.bank_plan else None
        part = Part(config, attempt.run.model_dump_json(), attempt.resume, bank, handed)
        with shared(part, device) as workers:
            for epoch in train.run(attempt.run, meter, attempt.resume, images, workers):
                if attempt.keep(epoch):
                    meter.keep()


def _error_text(error: Exception, run: Run, device: torch.device) -> str:
    """A sentence for an error that a person can mend; else the traceback."""
    if isinstance(error, RunError | UserError):
        return str(error)
    if out_of_memory(error):
        return does_not_fit(run, device)
    return "".join(traceback.format_exception(error))


class _Attempt:
    """What an attempt starts from, and what it leaves behind after every epoch."""

    def __init__(self, asked: Run, folder: Folder, gene: list[int] | None) -> None:
        """`gene`: what a member of a population is to go on with; None for any other run."""
        self.key, self.folder = asked.key, folder
        donated = tune.get_checkpoint()
        if donated is None:
            self.resume = folder.load_checkpoint(asked.key)
        else:  # another member's: its weights and its past, but not its gene
            with donated.as_directory() as directory:
                self.resume = load_state(Path(directory) / "state.pt")
        past = self.resume or {"epoch": 0, "rows": [], "schedule": [], "lineage": []}
        self.rows, self.schedule, self.lineage = past["rows"], past["schedule"], past["lineage"]
        self.run, self.every = asked, 0
        self.saved, self.saving = time.monotonic(), 0.0
        population = asked.method.population_search
        if gene is not None and population is not None:
            self.every = getattr(asked.method, population.perturb_every)
            gene_now = tuple(gene)
            if donated is None and self.lineage:  # resumed: Tune starts from the first again
                gene_now = tuple(self.lineage[-1][1])
            method = asked.method.model_copy(update={population.gene: gene_now})
            self.run = asked.model_copy(update={"method": method})
            if not self.lineage or tuple(self.lineage[-1][1]) != gene_now:
                begin = past["epoch"] / asked.train.epochs
                self.lineage = [*self.lineage, (begin, gene_now)]

    def keep(self, epoch: train.Epoch) -> bool:
        """Write rows, checkpoint and policy, and report to Tune.

        Returns True if all work so far is on disk, so that a process that dies now loses none.
        """
        self.folder.check()
        row, run, state = epoch.row, self.run, epoch.snapshot()
        row |= {"run_key": self.key, "reuse_actors": REUSE_ACTORS}
        if row["used_key"] != run.key:
            raise RunError(
                f"{run.label}: the trainer's settings hash to {row['used_key']}, the scheduler "
                f"asked for {run.key}; what ran is not what was asked for."
            )
        if run.phase == "final":
            self._keep_policy(row, state)
        population = run.method.population_search
        if row["finished"] and self.lineage and population is not None:
            lived = run.method.model_copy(update={population.lineage: tuple(self.lineage)})
            row["settings"] = run.model_copy(update={"method": lived}).model_dump_json()
        self.rows.append(row)
        self.folder.write_rows(self.key, self.rows)
        state |= {"rows": self.rows, "schedule": self.schedule, "lineage": self.lineage}
        self._report(row, state)
        if row["finished"]:
            self.folder.drop_checkpoint(self.key)
            return True
        begin = time.monotonic()
        if not self.every and CHECKPOINT_SHARE * (begin - self.saved) < self.saving:
            return False
        self.folder.save_checkpoint(self.key, state)
        self.saved = time.monotonic()
        self.saving = self.saved - begin
        return True

    def _keep_policy(self, row: Mapping[str, Any], state: Mapping[str, Any]) -> None:
        if policy.in_schedule(row["epoch"], row["epochs"]):
            if kept := policy.tensors(state["state"]):
                begin = self.schedule[-1][2] if self.schedule else 0.0
                self.schedule.append((begin, kept, row["epoch"] / row["epochs"]))
        if row["finished"]:
            policy.export(
                self.folder.policy(self.run.label, self.run.seed),
                self.run,
                policy.task_of(state["shape"]),
                state["state"],
                [(begin, kept) for begin, kept, _ in self.schedule],
                {"test_accuracy": row["test_accuracy"]},
            )

    def _report(self, row: Mapping[str, Any], state: Mapping[str, Any]) -> None:
        result = {
            "label": row["label"],
            "epoch": row["epoch"],
            "score": row["val_accuracy"] or 0.0,
            "device_hours": row["device_hours"],
            "finished": row["finished"],
        }
        if self.every and (row["epoch"] % self.every == 0 or row["finished"]):
            with tempfile.TemporaryDirectory() as place:  # Tune copies it before it returns
                save_state(Path(place) / "state.pt", state)
                tune.report(result, checkpoint=tune.Checkpoint.from_directory(place))
        else:
            tune.report(result)
