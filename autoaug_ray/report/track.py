"""Rows -> runs at a tracker: W&B, MLflow or TensorBoard.

A process of its own reads what the trials write to the study's folder and passes it on, so that
trials need neither a key nor a network, and nothing that happens to a tracker can stop or slow
them. It runs at the lowest priority, and ends when its stdin does: after the study, or when the
command is killed. What it has not sent then, the next `--resume` sends.

Every training that has rows is one run: of the study's group, as a search or a final training; and
every plan of generated images is one. Figures come with `device_hours`, over all attempts. A run's
id is kept: a resumed training goes on in the run that it began. A tracker is a `Service` in a file
that has its name, which alone imports its library.

    OUT/<study>/<tracker>/
      tracked.json           how many rows of each training have been passed on
      ...                    the tracker's own files, unless they are elsewhere
"""

import abc
import contextlib
import importlib
import json
import os
import select
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar, NamedTuple
from urllib.parse import urlsplit

from autoaug_ray.config import Study
from autoaug_ray.errors import UserError
from autoaug_ray.report.results import StudyResults, collect
from autoaug_ray.report.runs import Row, own_images_cost, read_study
from autoaug_ray.store.files import write_whole
from autoaug_ray.store.folder import Folder
from autoaug_ray.store.places import Remote, listed, place

SERVICES = {"wandb": "WandB", "mlflow": "MLflow", "tensorboard": "TensorBoard"}
"""Name of a tracker, of its file here and of its extra -> its class."""
STEP = "device_hours"
FIGURES = (
    "epoch", STEP, "device_hours_training", "train_loss", "val_accuracy", "test_accuracy",
    "displacement", "color_change",
)  # fmt: skip
"""Columns of a row that are passed on as they are."""
POLL_SECONDS = 5.0
PATIENCE_SECONDS = 60.0
"""What a tracker is waited for: to answer, and to take the rest when the study is over."""
SECRETS = ("WANDB_API_KEY", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_PASSWORD")


Summary = Mapping[str, float | str]
Files = Mapping[str, bytes]
"""By their names."""


class About(NamedTuple):
    """What a run is, before its first epoch."""

    id: str
    """The same whenever this training of this folder is passed on, and no other's."""
    name: str
    group: str
    kind: str
    """search, final or generate."""
    tags: Sequence[str]
    settings: Mapping[str, Any]
    """Plain values, nested."""


class Point(NamedTuple):
    """What is known of a run after an epoch."""

    epoch: int
    figures: Mapping[str, float]
    images: Files = {}
    """PNG files."""
    tables: Mapping[str, tuple[Sequence[str], Sequence[Sequence[float]]]] = {}
    """Names of columns, and rows."""


class TrackedRun(abc.ABC):
    """A run at a tracker, to which epochs are added in their order."""

    last: int = -1
    """The last epoch that the tracker has of it; -1 for none."""

    @abc.abstractmethod
    def log(self, point: Point) -> None: ...

    @abc.abstractmethod
    def end(self, summary: Summary, files: Files, *, failed: bool) -> None:
        """Nothing follows in this process. `files` are those of a policy."""


class Service(abc.ABC):
    """A tracker, as one process uses it for one study's folder. May raise anything."""

    title: ClassVar[str]
    needs: ClassVar[tuple[str, ...]]
    """The libraries that it imports."""
    later: ClassVar[str] = "the same command with --resume tries again"
    """How what only files hold gets online; may name {files}."""

    def __init__(self, mode: str, files: Path) -> None:
        """`mode` offline: what it keeps is below `files`, a folder that may not be there yet.

        May set this process's environment for the library, which is not imported yet.
        """
        self.mode, self.files = mode, files

    @property
    def live(self) -> bool:
        """Whether epochs are passed on as they come; else with the end of their training."""
        return True

    @classmethod
    @abc.abstractmethod
    def default_mode(cls) -> str:
        """What the environment asks for: off, offline or online."""

    @abc.abstractmethod
    def begin(self, about: About) -> TrackedRun:
        """The run of this id: a new one, or the one that was begun before."""


class Target(NamedTuple):
    """Where trainings are tracked."""

    service: str
    mode: str
    """offline or online."""


def service_named(name: str) -> type[Service]:
    found: type[Service] = getattr(
        importlib.import_module(f"autoaug_ray.report.{name}"), SERVICES[name]
    )
    return found


def target(track: str | None, wandb: str | None) -> Target | None:
    """Where `--track` and `--wandb` ask for; None stands for what the environment says, and for
    W&B. The target is None if nothing is tracked. Raises UserError."""
    name = track or "wandb"
    service = service_named(name)
    if name != "wandb" and wandb not in (None, "off"):
        raise UserError(f"--wandb {wandb} is for --track wandb, not for --track {name}.")
    mode = wandb if name == "wandb" and wandb else service.default_mode()
    if mode == "off":
        return None
    if missing := [library for library in service.needs if find_spec(library) is None]:
        raise UserError(
            f"--track {name} needs {', '.join(missing)}: pip install 'autoaug_ray[{name}]'."
        )
    return Target(name, mode)


def group_of(study: Study) -> str:
    return f"{study.name}, {study.case}" if study.case else study.name


def files_of(folder: Folder, name: str) -> Path:
    """Where a tracker keeps files of its own, which it cannot do on an object store."""
    if isinstance(folder.root, Remote):
        return Path("runs", *folder.root.path.split("/"), name)
    return folder.root / name


@contextlib.contextmanager
def tracking(
    folders: Sequence[Folder],
    to: Target | None,
    say: Callable[[str], None],
    patience: float | None = PATIENCE_SECONDS,
) -> Iterator[None]:
    """Rows that come into the folders while in here are passed on.

    `say` is told, once, what went wrong; nothing that does so is raised. At the end the tracker is
    waited for `patience` seconds, or for as long as it takes.
    """
    if to is None:
        yield
        return
    roots = [str(folder.root) for folder in folders]
    child = subprocess.Popen(
        [sys.executable, "-m", "autoaug_ray.report.track", *to, *roots],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        start_new_session=True,  # Ctrl-C is not for it
    )  # fmt: skip
    assert child.stdin is not None and child.stdout is not None
    messages = child.stdout

    def listen() -> None:
        for line in messages:
            say(line.rstrip())

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        yield
    except BaseException:
        child.stdin.close()  # it takes in what is there, and nobody waits for it
        raise
    child.stdin.close()
    try:
        status = child.wait(patience)
        listener.join()
    except subprocess.TimeoutExpired:
        child.kill()
        status = child.wait()
    if status != 0:
        title = service_named(to.service).title
        say(f"{title}: not everything was passed on; the same command with --resume tries again.")
    messages.close()


class Tracker:
    """Passes on what a study's folder holds and a tracker does not."""

    def __init__(self, folder: Folder, to: Target) -> None:
        self.folder, self.mode = folder, to.mode
        self.study = read_study(folder.root)
        self.service = service_named(to.service)(to.mode, files_of(folder, to.service))
        self._file = folder.root / to.service / "tracked.json"
        if self._file.exists():
            self.tracked = json.loads(self._file.read_text())
        else:
            # Two folders of the same study are not the same runs.
            self.tracked = {"name": uuid.uuid4().hex[:8], "online": {}, "offline": {}}
            self._keep()
        self._open: dict[str, TrackedRun] = {}
        self._whole: set[str] = set()

    def send(self, *, last: bool) -> None:
        """What is new. `last`: nothing will follow, also of trainings that have not ended."""
        ended = {line["run"]: line["outcome"] for line in self.folder.read_outcomes()}
        new = {}
        for path in listed(self.folder.rows, "*.parquet"):
            if path.stem not in self._whole and (rows := self.folder.read_rows(path.stem)):
                new[path.stem] = rows
        results = None
        for key, rows in new.items():
            outcome = "finished" if rows[-1]["finished"] else ended.get(key)
            if rows[-1]["finished"]:
                self._whole.add(key)
            if self._has(key, len(rows)) or not (outcome or last or self.service.live):
                continue
            run = self._open.get(key) or self._begin(key, rows[-1])
            for point in points(rows):
                if point.epoch > run.last:
                    run.log(point)
                    run.last = point.epoch
            if outcome is None and not last:
                continue
            summary: dict[str, float | str] = {"outcome": outcome or "unfinished"}
            files: dict[str, bytes] = {}
            if outcome == "finished" and rows[-1]["phase"] == "final":
                results = results or collect(self.study, self.folder)
                summary |= _found(results, rows[-1])
                policy = self.folder.policy(rows[-1]["label"], rows[-1]["seed"])
                files = {path.name: path.read_bytes() for path in listed(policy, "policy.*")}
            run.end(summary, files, failed=outcome in (None, "failed"))
            self._note(key, len(rows))
        if last:
            self._generated()

    def _has(self, key: str, count: int) -> bool:
        modes = ("online",) if self.mode == "online" else ("online", "offline")
        return any(self.tracked[mode].get(key) == count for mode in modes)

    def _begin(self, key: str, row: Row) -> TrackedRun:
        trial = f" trial {row['index']}" if row["phase"] == "search" else ""
        self._open[key] = self.service.begin(
            About(
                id=f"{self.tracked['name']}-{key}",
                name=f"{row['label']} {row['phase']}{trial} seed {row['seed']}",
                group=group_of(self.study),
                kind=row["phase"],
                tags=[row["method"], self.study.dataset.name, row["phase"]],
                settings=without_paths(json.loads(row["settings"])),
            )
        )
        return self._open[key]

    def _note(self, key: str, count: int) -> None:
        self._open.pop(key, None)
        self.tracked[self.mode][key] = count
        self._keep()

    def _keep(self) -> None:
        write_whole(self._file, json.dumps(self.tracked, indent=1).encode())

    def _generated(self) -> None:
        """The images that were made for the study, by plan; methods may need a part of it each."""
        plans: dict[str, list[Mapping[str, float]]] = {}
        for row in self.folder.read_rows():
            if row["bank_plan"] and row["finished"]:
                row |= own_images_cost(self.study, row)
                plans.setdefault(row["bank_plan"], []).append(row["bank_hours"])
        for plan, hours in plans.items():
            key = f"generate-{plan[:16]}"
            if self._has(key, len(hours)):
                continue
            run = self.service.begin(
                About(
                    id=f"{self.tracked['name']}-{key}",
                    name=f"generated images {plan[:8]}",
                    group=group_of(self.study),
                    kind="generate",
                    tags=[self.study.dataset.name, "generate"],
                    settings=without_paths(self.study.generate.model_dump(mode="json")),
                )
            )
            phases = {phase for needed in hours for phase in needed}
            spent = {p: max(needed.get(p, 0.0) for needed in hours) for p in sorted(phases)}
            summary = {f"{STEP}/{p}": h for p, h in spent.items()} | {STEP: sum(spent.values())}
            sheet = self.folder.root / "sheet.png"
            if sheet.is_file() and run.last < 0:
                run.log(Point(0, {STEP: summary[STEP]}, {"sheet": sheet.read_bytes()}))
            run.end(summary, {}, failed=False)
            self._note(key, len(hours))


def points(rows: Sequence[Row]) -> Iterator[Point]:
    clock = 0.0
    for row in rows:
        # A member of a population goes on from another's rows, whose clock may be ahead.
        clock = max(clock, row[STEP])
        figures = {k: row[k] for k in FIGURES if row[k] is not None} | {STEP: clock}
        figures |= {f"log/{k}": v for k, v in row["log"].items()}
        tables = {}
        if row["alpha"]:
            means = map(fmean, zip(*row["alpha"], strict=True))
            figures |= {f"alpha/{kind}": m for kind, m in zip(row["kinds"], means, strict=True)}
            if row["finished"]:
                data = [[i, *shares] for i, shares in enumerate(row["alpha"])]
                tables["alpha_table"] = (["class", *row["kinds"]], data)
        yield Point(
            row["epoch"], figures, {"samples": row["samples"]} if row["samples"] else {}, tables
        )


def _found(results: StudyResults, row: Row) -> dict[str, float]:
    found = {"test_accuracy": row["test_accuracy"]}
    if (cost := results.run_costs.get(row["run_key"])) is not None:
        found["cost_device_hours"] = cost
    return found


def without_paths(value: Any) -> Any:
    """Cut paths to their last part: the rest tells of the machine and its users."""
    if isinstance(value, Mapping):
        return {k: without_paths(v) for k, v in value.items()}
    if isinstance(value, list):
        return [without_paths(v) for v in value]
    if isinstance(value, str) and value.startswith(("/", "~")):
        return Path(value).name
    return value


def flat(settings: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Nested settings by dotted keys; what is neither text nor a number becomes text."""
    out: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            out |= flat(value, f"{above}{name}.")
        else:
            out[above + name] = value if isinstance(value, str | int | float) else str(value)
    return out


def reason(error: Exception) -> str:
    """Kind and first line of an error, without a secret that it may quote."""
    text = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}".rstrip(".: ")
    secrets = [os.environ.get(name) for name in SECRETS]
    secrets.append(urlsplit(os.environ.get("MLFLOW_TRACKING_URI", "")).password)
    for secret in filter(None, secrets):
        text = text.replace(secret, "***")
    return text


def main(arguments: Sequence[str]) -> int:
    """SERVICE MODE FOLDER...: until stdin ends. Exit status: 0 all was passed on, 1 not all."""
    name, mode, *roots = arguments
    os.nice(19)
    before = dict(os.environ)
    folders = [Folder(place(root)) for root in roots]
    service = service_named(name)
    trackers = [Tracker(folder, Target(name, mode)) for folder in folders]
    last = False
    while not last:
        last = bool(select.select([sys.stdin], [], [], POLL_SECONDS)[0])
        try:
            for tracker in trackers:
                tracker.send(last=last)
        except Exception as error:
            said = f"{service.title}, {mode}: {reason(error)}"
            if mode == "offline":
                print(f"{said}. Tracking has stopped.", flush=True)
                return 1
            later = service.later.format(files=files_of(folders[0], name))
            print(f"{said}. Going on offline; later, {later}.", flush=True)
            # In a new process: this one's library still holds the runs that it could not send.
            again = [sys.executable, "-m", "autoaug_ray.report.track", name, "offline", *roots]
            os.execve(sys.executable, again, before)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
