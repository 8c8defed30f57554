"""Rows -> W&B runs, and a W&B report.

A process of its own reads what the trials write to the study's folder and passes it on, so that
trials need neither a key nor a network, and nothing that happens to W&B can stop or slow them. It
runs at the lowest priority, and ends when its stdin does: after the study, or when the command is
killed. What it has not sent then, the next `--resume` or `autoaug-ray report --wandb` sends.

Every training that has rows is one W&B run: project `autoaug_ray` (or WANDB_PROJECT), group the
study and its case, job_type search or final; and every plan of generated images is one, of job_type
generate. Every figure is plotted against `device_hours`, over all attempts. A run's id is kept: a
resumed training goes on in the run that it began.

    OUT/<study>/wandb/
      tracked.json           how many rows of each training have been passed on
      offline-run-*, run-*   W&B's own files, for `wandb sync`
"""

import contextlib
import io
import json
import os
import select
import shutil
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from autoaug_ray.config import Study
from autoaug_ray.errors import RunError, UserError
from autoaug_ray.report.results import StudyResults, collect
from autoaug_ray.report.runs import Row, own_images_cost, read_study
from autoaug_ray.store.files import write_whole
from autoaug_ray.store.folder import Folder
from autoaug_ray.store.places import Remote, listed, place

MODES = ("off", "offline", "online")
STEP = "device_hours"
FIGURES = (
    "epoch", STEP, "device_hours_training", "train_loss", "val_accuracy", "test_accuracy",
    "displacement", "color_change",
)  # fmt: skip
"""Columns of a row that are passed on as they are."""
POLL_SECONDS = 5.0
PATIENCE_SECONDS = 60.0
"""What W&B is waited for: to answer, and to take the rest when the study is over."""


def default_mode() -> str:
    """WANDB_MODE, if it is set; else online with a WANDB_API_KEY and offline without."""
    if mode := os.environ.get("WANDB_MODE"):
        return mode if mode in MODES else "off"
    return "online" if os.environ.get("WANDB_API_KEY") else "offline"


def group_of(study: Study) -> str:
    return f"{study.name}, {study.case}" if study.case else study.name


def local(folder: Folder) -> Path:
    """Where W&B keeps files of its own, which it cannot do on an object store."""
    if isinstance(folder.root, Remote):
        return Path("runs", *folder.root.path.split("/"))
    return folder.root


def project() -> str:
    return os.environ.get("WANDB_PROJECT", "autoaug_ray")


@contextlib.contextmanager
def tracking(
    folders: Sequence[Folder],
    mode: str,
    say: Callable[[str], None],
    patience: float | None = PATIENCE_SECONDS,
) -> Iterator[None]:
    """Rows that come into the folders while in here are passed on to W&B.

    `say` is told, once, what went wrong; nothing that does so is raised. At the end W&B is waited
    for `patience` seconds, or for as long as it takes.
    """
    if mode == "off":
        yield
        return
    environment = dict(os.environ)
    if mode == "offline":
        environment.pop("WANDB_API_KEY", None)
    child = subprocess.Popen(
        [sys.executable, "-m", "autoaug_ray.report.wandb", mode, *(str(f.root) for f in folders)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env=environment, start_new_session=True,  # Ctrl-C is not for it
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
        say("W&B: not everything was passed on; the same command with --resume tries again.")
    messages.close()


class Tracker:
    """Passes on what a study's folder holds and W&B does not."""

    def __init__(self, folder: Folder, mode: str) -> None:
        self.folder, self.mode = folder, mode
        self.study = read_study(folder.root)
        self._file = folder.root / "wandb" / "tracked.json"
        self.local = local(folder)
        if self._file.exists():
            self.tracked = json.loads(self._file.read_text())
        else:
            # Two folders of the same study are not the same runs.
            self.tracked = {"name": uuid.uuid4().hex[:8], "online": {}, "offline": {}}
            self._keep()
        self._open: dict[str, Any] = {}
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
            if self._has(key, len(rows)) or not (outcome or last or self.mode == "online"):
                continue
            run = self._open.get(key) or self._begin(key, rows[-1])
            self._log(run, rows)
            if outcome is None and not last:
                continue
            run.summary["outcome"] = outcome or "unfinished"
            if outcome == "finished" and rows[-1]["phase"] == "final":
                results = results or collect(self.study, self.folder)
                self._conclude(run, results, rows[-1])
            self._end(key, run, len(rows), failed=outcome in (None, "failed"))
        if last:
            self._generated()

    def _has(self, key: str, count: int) -> bool:
        modes = ("online",) if self.mode == "online" else ("online", "offline")
        return any(self.tracked[mode].get(key) == count for mode in modes)

    def _begin(self, key: str, row: Row) -> Any:
        settings = json.loads(row["settings"])
        trial = f" trial {row['index']}" if row["phase"] == "search" else ""
        return self._init(
            key,
            job_type=row["phase"],
            name=f"{row['label']} {row['phase']}{trial} seed {row['seed']}",
            tags=[row["method"], self.study.dataset.name, row["phase"]],
            config=_without_paths(settings),
        )

    def _init(self, key: str, *, tags: Sequence[str], **about: Any) -> Any:
        import wandb

        name = f"{self.tracked['name']}-{key}"
        for old in (self.local / "wandb").glob(f"*run-*-{name}"):
            shutil.rmtree(old)  # what is passed on now is the whole history, or what W&B lacks
        run = wandb.init(
            project=project(),
            group=group_of(self.study),
            id=name,
            tags=[tag[:64] for tag in tags],  # W&B takes no longer ones
            mode="online" if self.mode == "online" else "offline",
            resume="allow" if self.mode == "online" else None,
            reinit="create_new",
            dir=str(self.local),
            settings=_quiet(),
            **about,
        )
        run.define_metric(STEP)
        run.define_metric("*", step_metric=STEP)
        self._open[key] = run
        return run

    def _log(self, run: Any, rows: Sequence[Row]) -> None:
        import wandb
        from PIL import Image

        clock = 0.0
        for row in rows:
            # A member of a population goes on from another's rows, whose clock may be ahead.
            clock = max(clock, row[STEP])
            if row["epoch"] < run.step:  # W&B has it
                continue
            out = {k: row[k] for k in FIGURES if row[k] is not None} | {STEP: clock}
            out |= {f"log/{k}": v for k, v in row["log"].items()}
            if row["alpha"]:
                means = map(fmean, zip(*row["alpha"], strict=True))
                out |= {f"alpha/{kind}": m for kind, m in zip(row["kinds"], means, strict=True)}
                if row["finished"]:
                    data = [[i, *ps] for i, ps in enumerate(row["alpha"])]
                    out["alpha_table"] = wandb.Table(columns=["class", *row["kinds"]], data=data)
            if row["samples"]:
                out["samples"] = wandb.Image(Image.open(io.BytesIO(row["samples"])))
            run.log(out, step=row["epoch"], commit=True)

    def _conclude(self, run: Any, results: StudyResults, row: Row) -> None:
        import wandb

        run.summary["test_accuracy"] = row["test_accuracy"]
        if (cost := results.run_costs.get(row["run_key"])) is not None:
            run.summary["cost_device_hours"] = cost
        policy = self.folder.policy(row["label"], row["seed"])
        if policy.is_dir():
            about = {"label": row["label"], "seed": row["seed"]}
            artifact = wandb.Artifact(f"policy-{run.id}", type="policy", metadata=about)
            for path in listed(policy, "policy.*"):
                with artifact.new_file(path.name, "wb") as file:
                    file.write(path.read_bytes())
            run.log_artifact(artifact)

    def _end(self, key: str, run: Any, count: int, *, failed: bool = False) -> None:
        run.finish(exit_code=int(failed))
        self._open.pop(key)
        self.tracked[self.mode][key] = count
        self._keep()

    def _keep(self) -> None:
        write_whole(self._file, json.dumps(self.tracked, indent=1).encode())

    def _generated(self) -> None:
        """The images that were made for the study, by plan; methods may need a part of it each."""
        import wandb

        plans: dict[str, list[Mapping[str, float]]] = {}
        for row in self.folder.read_rows():
            if row["bank_plan"] and row["finished"]:
                row |= own_images_cost(self.study, row)
                plans.setdefault(row["bank_plan"], []).append(row["bank_hours"])
        for plan, hours in plans.items():
            key = f"generate-{plan[:16]}"
            if self._has(key, len(hours)):
                continue
            run = self._init(
                key,
                job_type="generate",
                name=f"generated images {plan[:8]}",
                tags=[self.study.dataset.name, "generate"],
                config=_without_paths(self.study.generate.model_dump(mode="json")),
            )
            phases = {phase for needed in hours for phase in needed}
            spent = {p: max(needed.get(p, 0.0) for needed in hours) for p in sorted(phases)}
            run.summary.update({f"{STEP}/{p}": h for p, h in spent.items()})
            run.summary[STEP] = sum(spent.values())
            sheet = self.folder.root / "sheet.png"
            if sheet.is_file() and run.step == 0:
                run.log({STEP: sum(spent.values()), "sheet": wandb.Image(str(sheet))})
            self._end(key, run, len(hours))


def publish(cases: Sequence[tuple[Study, str]]) -> str:
    """Create a W&B report of a study's cases, each with its text in Markdown; its address.

    Raises UserError without wandb-workspaces, RunError if W&B does not take it.
    """
    try:
        from wandb_workspaces import expr
        from wandb_workspaces.reports import v2
    except ModuleNotFoundError as error:
        raise UserError(
            f"--wandb needs {error.name}: pip install 'autoaug_ray[wandb-report]'."
        ) from None
    import wandb

    accuracy, cost = v2.SummaryMetric("test_accuracy"), v2.SummaryMetric("cost_device_hours")
    by_method = v2.Config("label")

    def curves(title: str, metric: str) -> Any:
        return v2.LinePlot(
            title=title, x=STEP, y=[metric], groupby=by_method, title_x="device-hours, all attempts"
        )

    def settings_of(study: Study) -> list[Any]:
        names = sorted({f"method.{name}" for entry in study.entries for name in entry.ranges})
        return [v2.Config(name) for name in ["label", *names]]

    try:
        entity = os.environ.get("WANDB_ENTITY") or wandb.Api().default_entity
        blocks: list[Any] = []
        for study, text in cases:

            def grid(name: str, job_type: str, *panels: Any, group: str = group_of(study)) -> Any:
                filters = [expr.Metric("Group") == group, expr.Metric("JobType") == job_type]
                runs = v2.Runset(entity=entity, project=project(), name=name, filters=filters)
                return v2.PanelGrid(runsets=[runs], panels=list(panels))

            axes = [*settings_of(study), v2.SummaryMetric("val_accuracy")]
            blocks += [
                v2.H1(group_of(study)),
                v2.MarkdownBlock(text),
                grid(
                    "final trainings", "final",
                    v2.ScatterPlot(
                        title="Test accuracy against device-hours, search and images included",
                        x=cost, y=accuracy, log_x=True, running_ymax=True,
                        layout=v2.Layout(w=24, h=12),
                    ),
                    curves("Training loss", "train_loss"),
                    curves("Delivered displacement, pixels", "displacement"),
                    curves("Delivered change of colour", "color_change"),
                    v2.RunComparer(diff_only=True, layout=v2.Layout(w=24, h=12)),
                ),
                grid(
                    "search trials", "search",
                    curves("Validation accuracy in the search", "val_accuracy"),
                    v2.ParallelCoordinatesPlot(
                        title="What was searched",
                        columns=[v2.ParallelCoordinatesPlotColumn(axis) for axis in axes],
                        layout=v2.Layout(w=16, h=8),
                    ),
                ),
            ]  # fmt: skip
        report = v2.Report(
            entity=entity, project=project(), title=cases[0][0].name, blocks=blocks, width="fluid"
        )
        report.save()
    except Exception as error:
        raise RunError(
            f"W&B took no report: {type(error).__name__}: {_first_line(error)}"
        ) from None
    return str(report.url)


def _first_line(error: Exception) -> str:
    """Without the key, should the message quote it."""
    text = (str(error).splitlines() or [""])[0]
    key = os.environ.get("WANDB_API_KEY")
    return text.replace(key, "***") if key else text


def _quiet() -> Any:
    """What W&B collects by itself, of the machine and of whoever is logged in, stays here."""
    import wandb

    return wandb.Settings(
        silent=True,
        console="off",
        host="-",
        disable_git=True,
        disable_code=True,
        save_code=False,
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_disable_stats=True,
        x_save_requirements=False,
        init_timeout=float(os.environ.get("WANDB_INIT_TIMEOUT", PATIENCE_SECONDS / 2)),
        finish_timeout=PATIENCE_SECONDS / 2,
        finish_timeout_raises=True,
    )


def _without_paths(value: Any) -> Any:
    """Cut paths to their last part: the rest tells of the machine and its users."""
    if isinstance(value, Mapping):
        return {k: _without_paths(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_paths(v) for v in value]
    if isinstance(value, str) and value.startswith(("/", "~")):
        return Path(value).name
    return value


def main(arguments: Sequence[str]) -> int:
    """MODE FOLDER...: until stdin ends. Exit status: 0 all was passed on, 1 not all."""
    mode, *roots = arguments
    os.nice(19)
    without_key = {k: v for k, v in os.environ.items() if k != "WANDB_API_KEY"}
    folders = [Folder(place(root)) for root in roots]
    os.environ.setdefault("WANDB_DATA_DIR", str((local(folders[0]) / "wandb" / "data").resolve()))
    trackers = [Tracker(folder, mode) for folder in folders]
    last = False
    while not last:
        last = bool(select.select([sys.stdin], [], [], POLL_SECONDS)[0])
        try:
            for tracker in trackers:
                tracker.send(last=last)
        except Exception as error:
            if mode == "offline":
                print(f"W&B: {type(error).__name__}: tracking has stopped.", flush=True)
                return 1
            print(
                f"W&B cannot be reached ({type(error).__name__}): going on offline; later, "
                f"wandb sync {local(folders[0])}/wandb/offline-run-*",
                flush=True,
            )
            # In a new process: this one's wandb still holds the runs that it could not send.
            again = [sys.executable, "-m", "autoaug_ray.report.wandb", "offline", *roots]
            os.execve(sys.executable, again, without_key)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
