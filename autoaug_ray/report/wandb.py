"""W&B as a tracker, and a W&B report.

Every training is a run of the project `autoaug_ray` (or WANDB_PROJECT): group the study and its
case, job_type search, final or generate. Every figure is plotted against `device_hours`.

    OUT/<study>/wandb/offline-run-*, run-*   W&B's own files, for `wandb sync`
"""

import io
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autoaug_ray.config import Study
from autoaug_ray.errors import RunError, UserError
from autoaug_ray.report.track import (
    PATIENCE_SECONDS,
    STEP,
    About,
    Files,
    Point,
    Service,
    Summary,
    TrackedRun,
    group_of,
    reason,
)

MODES = ("off", "offline", "online")
ONE_RUN = (
    "RUN_ID", "NAME", "NOTES", "TAGS", "RUN_GROUP", "JOB_TYPE", "RESUME", "RESUME_FROM",
    "FORK_FROM", "SWEEP_ID", "SWEEP_PARAM_PATH", "LAUNCH", "LAUNCH_CONFIG_PATH",
)  # fmt: skip
"""Variables (WANDB_...) that say which run a process is, as `wandb agent` sets them for the command
that it starts. W&B prefers them to what it is told, and all trainings would be that one run."""


def project() -> str:
    return os.environ.get("WANDB_PROJECT", "autoaug_ray")


class WandB(Service):
    title = "W&B"
    needs = ("wandb",)
    later = "wandb sync {files}/offline-run-*"

    @property
    def live(self) -> bool:
        return self.mode == "online"

    @classmethod
    def default_mode(cls) -> str:
        """WANDB_MODE, if it is set; else online with a WANDB_API_KEY and offline without."""
        if mode := os.environ.get("WANDB_MODE"):
            return mode if mode in MODES else "off"
        return "online" if os.environ.get("WANDB_API_KEY") else "offline"

    def __init__(self, mode: str, files: Path) -> None:
        super().__init__(mode, files)
        for name in ONE_RUN:
            os.environ.pop(f"WANDB_{name}", None)
        if mode == "offline":
            os.environ.pop("WANDB_API_KEY", None)
        os.environ.setdefault("WANDB_DATA_DIR", str((files / "data").resolve()))

    def begin(self, about: About) -> TrackedRun:
        import wandb

        for old in self.files.glob(f"*run-*-{about.id}"):
            shutil.rmtree(old)  # what is passed on now is the whole history, or what W&B lacks
        return _Run(
            wandb.init(
                project=project(),
                group=about.group,
                id=about.id,
                name=about.name,
                job_type=about.kind,
                tags=[tag[:64] for tag in about.tags],  # W&B takes no longer ones
                config=dict(about.settings),
                mode="online" if self.mode == "online" else "offline",
                resume="allow" if self.mode == "online" else None,
                reinit="create_new",
                dir=str(self.files.parent),
                settings=_quiet(),
            )
        )


class _Run(TrackedRun):
    def __init__(self, run: Any) -> None:
        self.run, self.last = run, run.step - 1
        run.define_metric(STEP)
        run.define_metric("*", step_metric=STEP)

    def log(self, point: Point) -> None:
        import wandb
        from PIL import Image

        out: dict[str, Any] = dict(point.figures)
        for name, png in point.images.items():
            out[name] = wandb.Image(Image.open(io.BytesIO(png)))
        for name, (columns, rows) in point.tables.items():
            out[name] = wandb.Table(columns=list(columns), data=[list(row) for row in rows])
        self.run.log(out, step=point.epoch, commit=True)

    def end(self, summary: Summary, files: Files, *, failed: bool) -> None:
        import wandb

        self.run.summary.update(dict(summary))
        if files:
            about = {name: self.run.config[name] for name in ("label", "seed")}
            artifact = wandb.Artifact(f"policy-{self.run.id}", type="policy", metadata=about)
            for name, data in files.items():
                with artifact.new_file(name, "wb") as file:
                    file.write(data)
            self.run.log_artifact(artifact)
        self.run.finish(exit_code=int(failed))


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
        raise RunError(f"W&B took no report: {reason(error)}") from None
    return str(report.url)


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
