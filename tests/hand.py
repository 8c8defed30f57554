"""Folders as a study would leave them, written by hand: what the tests of reports are given."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

from autoaug_ray import config
from autoaug_ray.report.results import EntryResult, StudyResults, collect
from autoaug_ray.report.sentences import verdicts
from autoaug_ray.report.verdict import verdict
from autoaug_ray.store import meter
from autoaug_ray.store.calibration import Calibration, EntryCalibration, Training
from autoaug_ray.store.folder import Folder

TREE: dict[str, Any] = {
    "dataset": {"name": "fashion-mnist-mini", "train_size": 160, "test_size": 60},
    "train": {"epochs": 2, "batch_size": 16},
    "seeds": 3,
    "methods": {
        "none": None,
        "randaugment": {"magnitude": {"grid": [5, 9]}},
        "bilevel": {"every": 2, "until": 1.0, "group": "translation"},
    },
}


class Hand:
    """Writes rows, ledger and outcomes as a study would."""

    def __init__(self, root: Path, **changes: Any) -> None:
        case = changes.pop("case", None)
        self.study = config.study(TREE | changes, name="hand", case=case)
        self.folder = Folder(root)
        self.clock = 0.0

    def key(self, label: str, phase: str, seed: int, choices: Mapping[str, Any], index: int) -> str:
        return self._run(label, phase, seed, choices, index).key

    def _run(
        self, label: str, phase: str, seed: int, choices: Any, index: int, learning: bool = False
    ) -> config.Run:
        entry = self.study.entry(label)
        return self.study.run(
            entry,
            phase,
            seed=seed,
            choices=choices,
            index=index,
            whole_pool=learning,  # type: ignore[arg-type]
        )

    def run(
        self,
        label: str,
        phase: str = "final",
        seed: int = 0,
        *,
        accuracy: float = 0.5,
        seconds: tuple[float, ...] = (10.0,),
        wall: float = 1.0,
        kept: float = 1.0,
        share: float = 1.0,
        choices: Mapping[str, Any] | None = None,
        index: int = 0,
        finished: bool = True,
        error: str | None = None,
        rows: bool = True,
        device: str = "CPU",
        more: Mapping[str, Any] | None = None,
        by_epoch: Mapping[str, Sequence[Any]] | None = None,
    ) -> None:
        """`seconds` of training per attempt; evaluation takes 100 and the rest 1000 in each.

        `wall`: times as long as that by the clock on the wall. `kept`: the share of an attempt's
        work that a checkpoint keeps. A training does all of its work in 10 steps in its last epoch.
        `more`: other columns of the rows. `by_epoch`: columns with a value for each of the two
        epochs of a run that learns how to mix.
        """
        choices = choices or {}
        run = self._run(label, phase, seed, choices, index, learning=by_epoch is not None)
        self.folder.ledger.mkdir(parents=True, exist_ok=True)
        for attempt, spent in enumerate(seconds, start=1):
            self.clock += 1
            line = {
                "run": run.key, "attempt": attempt, "share": share, "device": device,
                "label": label, "phase": phase, "seed": seed, "at": self.clock,
                "seconds": dict.fromkeys(meter.PHASES, 0)
                | {"eval": 100, "other": 1000, phase: wall * spent},
                "clock": "CPU time", "work": {"eval": 100, "warm_up": 50, phase: share * spent},
                "kept_work": {phase: share * spent * kept},
            }  # fmt: skip
            path = self.folder.ledger / f"{run.key}-{attempt:03d}.jsonl"
            path.write_text(json.dumps(line) + "\n")
        whole = finished and error is None
        last = {
            "run_key": run.key, "used_key": run.key, "label": label, "method": run.method.name,
            "phase": phase, "seed": seed, "index": index, "settings": run.model_dump_json(),
            "epoch": 2 if whole else 1, "epochs": 2, "train_loss": 1.0, "log": {},
            "val_accuracy": accuracy if phase == "search" else None,
            "test_accuracy": accuracy if phase == "final" and whole else None,
            "class_accuracy": [accuracy, 1.0] if phase == "final" and whole else None,
            "displacement": accuracy, "color_change": 0.0, "device": device, "share": share,
            "attempt": len(seconds), "device_hours": 0.0, "device_hours_training": 0.0,
            "threads": 1, "channels_last": False, "reuse_actors": True, "clock": "CPU time",
            "work": share * sum(seconds), "work_after": 0.0, "bank_work": {},
            "step_work": [{"logged": "train_loss", "steps": 10,
                           **dict.fromkeys(("q1", "median", "q3"), share * sum(seconds) / 10)}],
            "finished": whole, **(more or {}),
        }  # fmt: skip
        if by_epoch is not None:
            last["val_accuracy"] = None
            epochs = [{k: v[i] for k, v in by_epoch.items()} for i in (0, 1)]
            first = {**last, "epoch": 1, "finished": False, "work": 0.0, "step_work": []}
            self.folder.write_rows(run.key, [first | epochs[0], last | epochs[1]])
        elif rows:
            self.folder.write_rows(run.key, [{**last, "epoch": 1, "finished": False,
                                              "work": 0.0, "step_work": [],
                                              "test_accuracy": None, "class_accuracy": None},
                                             *([last] if whole else [])])  # fmt: skip
        outcome = "failed" if error else "finished" if finished else "stopped"
        about = {"run": run.key, "label": label, "phase": phase, "seed": seed, "index": index}
        with open(self.folder.root / "outcomes.jsonl", "a") as file:
            file.write(json.dumps({**about, "outcome": outcome, "error": error}) + "\n")

    def finals(self, label: str, *accuracies: float, **more: Any) -> None:
        for seed, accuracy in enumerate(accuracies):
            self.run(label, seed=seed, accuracy=accuracy, **more)

    def results(self, *classes: str) -> StudyResults:
        if classes:
            self.folder.note_data("", classes)
        return collect(self.study, self.folder)

    def rows(self) -> dict[str, dict[str, Any]]:
        """label -> row of summary.parquet."""
        return {r.label: r.row() for r in self.results().entries}

    def words(self) -> str:
        results = self.results()
        said = verdict(results)
        return "\n".join([said.headline, *said.notes, *verdicts(results)])


def entry(label: str, **known: Any) -> EntryResult:
    """An entry of which only so much is known; it cost nothing."""
    accuracies = tuple(known.get("test_accuracies", ()))
    unknown: dict[str, Any] = {
        field.name: None if field.type in (str | None, float | None) else 0
        for field in fields(EntryResult)
    }
    defaults: dict[str, Any] = {
        "method": label, "reference": "none", "dataset": "hand", "device": "CPU",
        "seeds": tuple(range(len(accuracies))), "missing_seeds": (), "test_accuracies": accuracies,
        "test_accuracy_mean": sum(accuracies) / len(accuracies) if accuracies else None,
        "macro_accuracies": (), "choices": {}, "policies": {}, "test_right": {},
        "clock": "CPU time",
    }  # fmt: skip
    cost = known.get("relative_cost")
    seeds = tuple(known.get("seeds", defaults["seeds"])) if cost is not None else ()
    defaults |= {"cost_seeds": seeds, "relative_costs": (cost,) * len(seeds)}
    hours = dict.fromkeys(meter.PHASES, 0.0) | known.pop("device_hours", {})
    about = {"label": label, "device_hours": hours, "total_device_hours": sum(hours.values())}
    return EntryResult(**unknown | defaults | about | known)


def calibrated(**trainings: tuple[Training | None, Training]) -> Calibration:
    """A calibration of entries by label, each with its search, if any, and its final training."""
    about: dict[str, Any] = {"run": "0", "device": "CPU", "clock": "CPU time", "threads": 1}
    return Calibration(
        time=0.0,
        entries=tuple(
            EntryCalibration(label=label, search=search, final=final, **about)
            for label, (search, final) in trainings.items()
        ),
    )


KINDS = ["identity", "local", "transfer"]


class MixHand(Hand):
    """A study of mixes: `none`, the equal mix, and a learned one, on uneven classes."""

    def __init__(self, root: Path, **changes: Any) -> None:
        third = {"identity": 1 / 3, "local": 1 / 3, "transfer": 1 / 3}
        methods = {
            "none": None,
            "search-free": {"method": "mix", "probabilities": third},
            "autogenda": None,
        }
        dataset = {"name": "fashion-mnist-mini", "imbalance": {"factor": 0.1}}
        super().__init__(root, **{"methods": methods, "dataset": dataset} | changes)

    def fill(
        self,
        gain: Mapping[str, float],
        *,
        classes: int = 10,
        redraw: bool = True,
        even: bool = False,
        noise: float = 0.01,
        share: float = 0.1,
        seed: int = 0,
        skip: Sequence[tuple[str, int]] = (),
    ) -> None:
        """Finals of every entry; `gain` [0, 1] over 0.5 by label, all of it in rare classes.

        Class c of the seed has 1000 / (1 + rank) images; the learned mix draws edits the more
        often the rarer the class is, by up to `share`.
        """
        rng = np.random.default_rng(seed)
        rank = np.arange(classes)
        for s in self.study.seeds:
            order = np.random.default_rng(s).permutation(classes) if redraw else rank
            counts = np.empty(classes, dtype=int)
            counts[order] = 40 if even else 400 // (1 + rank)
            rare = np.empty(classes)
            rare[order] = rank / (classes - 1)  # 0 for the most frequent class
            shared = rng.normal(0, noise)
            edits = (1 / 3 + share * (rare - 0.5) + rng.normal(0, 0.01, classes)).clip(0.01, 0.49)
            learned = np.stack([1 - 2 * edits, edits, edits], axis=1)
            for label in (e.label for e in self.study.entries):
                if (label, s) in skip:
                    continue
                per_class = 0.6 - 0.2 * rare + 2 * gain.get(label, 0.0) * rare + shared
                per_class = (per_class + rng.normal(0, noise, classes)).clip(0, 1)
                more: dict[str, Any] = {
                    "class_counts": counts.tolist(), "class_accuracy": per_class.tolist(),
                    "imbalance_nominal": None if even else 0.1,
                    "imbalance_effective": float(counts.min() / counts.max()),
                    "kinds": [], "bank_hours": {},
                }  # fmt: skip
                choices = {}
                if label != "none":
                    table = learned if label == "autogenda" else np.full((classes, 3), 1 / 3)
                    work = {"caption": 1.0, "generate": 30.0}
                    hours = {phase: seconds / 3600 for phase, seconds in work.items()}
                    more |= {
                        "kinds": KINDS, "alpha": table.tolist(), "bank_plan": f"plan-{s}",
                        "bank_hours": hours, "bank_work": work,
                    }  # fmt: skip
                if label == "autogenda":
                    begin = (table + np.full((classes, 3), 1 / 3)) / 2
                    self.run(
                        label, "search", seed=s, seconds=(5.0,),
                        more=more | {"class_accuracy": None},
                        by_epoch={"alpha": [begin.tolist(), table.tolist()]},
                    )  # fmt: skip
                    choices = {"alpha_table": table.tolist()}
                # Test images in proportion to nothing: micro is a little above macro.
                micro = float(per_class.mean()) + (0.0 if even else 0.02)
                self.run(label, seed=s, accuracy=micro, choices=choices, more=more)


class Page(HTMLParser):
    """A page's tags and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data
