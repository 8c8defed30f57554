"""MLflow as a tracker: at MLFLOW_TRACKING_URI, or in files below the study's folder.

Every training is a run of the experiment that has the study's name and its case's; its step is the
epoch, and its relative time are device-hours since the first one.

    OUT/<study>/mlflow/mlflow.db, artifacts/   for `mlflow ui --backend-store-uri sqlite:///...`
"""

import io
import os
import tempfile
from pathlib import Path
from typing import Any

from autoaug_ray.report.track import STEP, About, Files, Point, Service, Summary, TrackedRun, flat

ID = "autoaug_ray_id"
"""Tag by which a run is found again: MLflow chooses its own ids."""


class MLflow(Service):
    title = "MLflow"
    needs = ("mlflow", "sqlalchemy", "alembic")

    @classmethod
    def default_mode(cls) -> str:
        return "online" if os.environ.get("MLFLOW_TRACKING_URI") else "offline"

    def begin(self, about: About) -> TrackedRun:
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
        from mlflow import MlflowClient
        from mlflow.entities import Param

        files = self.files.resolve()
        files.mkdir(parents=True, exist_ok=True)
        own = f"sqlite:///{files}/mlflow.db", (files / "artifacts").as_uri()
        uri, kept = own if self.mode == "offline" else (None, None)
        client = MlflowClient(uri)
        found = client.get_experiment_by_name(about.group)
        experiment = found.experiment_id if found else client.create_experiment(about.group, kept)
        for run in client.search_runs([experiment], f"tags.{ID} = '{about.id}'"):
            return _Run(client, run)
        tags = {ID: about.id, "kind": about.kind, "tags": ", ".join(about.tags)}
        run = client.create_run(experiment, run_name=about.name, tags=tags)
        params = [Param(key, str(value)) for key, value in flat(about.settings).items()]
        for first in range(0, len(params), 100):  # it takes no more at a time
            client.log_batch(run.info.run_id, params=params[first : first + 100])
        return _Run(client, run)


class _Run(TrackedRun):
    def __init__(self, client: Any, run: Any) -> None:
        self.client, self.id, self.clock = client, run.info.run_id, 0
        self.last = int(run.data.metrics.get("epoch", -1))

    def log(self, point: Point) -> None:
        from mlflow.entities import Metric
        from PIL import Image

        self.clock = round(3.6e6 * point.figures[STEP])
        metrics = [Metric(k, x, self.clock, point.epoch) for k, x in point.figures.items()]
        self.client.log_batch(self.id, metrics=metrics)
        for name, png in point.images.items():
            picture = Image.open(io.BytesIO(png))
            self.client.log_image(self.id, picture, key=name, step=point.epoch)
        for name, (columns, rows) in point.tables.items():
            self.client.log_dict(self.id, {"columns": columns, "data": rows}, f"{name}.json")

    def end(self, summary: Summary, files: Files, *, failed: bool) -> None:
        for name, value in summary.items():
            if isinstance(value, str):
                self.client.set_tag(self.id, name, value)
            else:
                self.client.log_metric(self.id, name, value, self.clock, max(self.last, 0))
        with tempfile.TemporaryDirectory() as place:
            for name, data in files.items():
                (Path(place) / name).write_bytes(data)
            self.client.log_artifacts(self.id, place, "policy")
        self.client.set_terminated(self.id, "FAILED" if failed else "FINISHED")
