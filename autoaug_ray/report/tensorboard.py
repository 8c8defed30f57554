"""TensorBoard as a tracker: a folder of event files for each training, below the study's folder.

Its step is the epoch, and its time are device-hours: TensorBoard's horizontal axis "relative" shows
those since the first epoch. Settings and results stand under "hparams".

    OUT/<study>/tensorboard/<id>/   for `tensorboard --logdir OUT/<study>`
"""

import io
import json
import shutil
from pathlib import Path
from typing import Any

from autoaug_ray.report.track import STEP, About, Files, Point, Service, Summary, TrackedRun, flat


class TensorBoard(Service):
    title = "TensorBoard"
    needs = ("tensorboard",)

    @classmethod
    def default_mode(cls) -> str:
        return "offline"

    def begin(self, about: About) -> TrackedRun:
        for old in self.files.glob(f"*{about.id}"):
            shutil.rmtree(old)  # what is passed on now is the whole history
        name = about.name.replace("/", "-").replace(" ", "_")
        return _Run(self.files / f"{name}-{about.id}", about)


class _Run(TrackedRun):
    def __init__(self, folder: Path, about: About) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(str(folder))
        self.settings = flat(about.settings)

    def log(self, point: Point) -> None:
        import numpy as np
        from PIL import Image

        at = {"global_step": point.epoch, "walltime": 3600 * point.figures[STEP]}
        for name, figure in point.figures.items():
            self.writer.add_scalar(name, figure, **at)
        for name, png in point.images.items():
            pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
            self.writer.add_image(name, pixels, dataformats="HWC", **at)
        for name, (columns, rows) in point.tables.items():
            lines = [columns, ["---"] * len(columns), *rows]
            text = "\n".join("|".join(map(str, line)) for line in lines)
            self.writer.add_text(name, text, **at)
        self.writer.flush()

    def end(self, summary: Summary, files: Files, *, failed: bool) -> None:
        """`files` stay where they are: TensorBoard keeps none."""
        figures = {f"result/{k}": v for k, v in summary.items() if not isinstance(v, str)}
        words = {k: v for k, v in summary.items() if isinstance(v, str)}
        self.writer.add_hparams(self.settings | words, figures, run_name=".")
        self.writer.add_text("settings", json.dumps(self.settings | words, indent=1))
        self.writer.close()
