"""The command line: its words and what their options mean; each word's work has a file beside this.

That file, and torch and Ray with it, is imported when its word runs: --help and what is wrong in a
study's YAML are said at once.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from autoaug_ray import __version__
from autoaug_ray.commands import bank_words
from autoaug_ray.commands.options import PLAIN, AsJson, Cases, Changes, DataFolder, Seeds, Studies
from autoaug_ray.errors import UserError, did_you_mean, exit_status

if TYPE_CHECKING:
    from autoaug_ray.config import Study

GO_ON = {
    "run": "the same command with --resume goes on.",
    "pilot": "the same command goes on.",
}
"""How a word goes on after an interruption, if there is anything to go on with."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a line of words and options (None: this process's), and return its exit status.

    0 done, 1 some run failed or a check found something, 2 wrong input, 130 interrupted.
    """
    command = typer.main.get_command(_words)
    try:
        command(args=arguments if arguments is None else list(arguments), prog_name="autoaug-ray")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    return 0


class _RunByDefault(TyperGroup):
    """A line that begins with a study's file is a line of `run`; each ends with its status."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        own = {name for option in self.get_params(ctx) for name in option.opts}
        if not args:
            args = ["--help"]
        first = args[0]
        if first not in own | set(self.commands):
            if not (first.startswith("-") or Path(first).suffix or Path(first).exists()):
                known = did_you_mean(first, self.commands)
                raise typer.BadParameter(
                    f"{first!r} is neither a word{known} nor a study's file; the words: "
                    f"{', '.join(self.commands)}."
                )
            args = ["run", *args]
        ctx.meta["word"] = args[0]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> None:
        work = super().invoke
        raise typer.Exit(exit_status(lambda: work(ctx), again=GO_ON.get(ctx.meta["word"], "")))


_words = typer.Typer(cls=_RunByDefault, **PLAIN)
_words.add_typer(bank_words.words, name="bank")
GROUP_BY = """Files below DIR in whose path its group 1 (or whole match) is the same, as in frames
of one video, stay on one side of each split."""


def _show_version(asked: bool) -> None:
    if asked:
        print(f"autoaug-ray {__version__}")
        raise typer.Exit()


@_words.callback()
def _about(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    """Which augmentation is worth its compute: accuracy against device-hours.

    A line that begins with a study's file is a line of run: `autoaug-ray STUDY.yaml` runs a study,
    and `autoaug-ray run` alone the quick start.
    """


@_words.command("run")
def _run(
    paths: Studies = None,
    out: Annotated[
        str | None,
        typer.Option(
            "--out",
            "--storage",
            metavar="DIR",
            show_default="runs",
            help="Where DIR/<study>/ is written. On a cluster, as --storage: where all machines "
            "write, s3://bucket/prefix or a folder that they share.",
        ),
    ] = None,
    bank: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Where generated images are kept, for all studies (default: the --out folder's "
            "bank).",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on with what DIR holds; finished runs are not run again."
        ),
    ] = False,
    seeds: Seeds = None,
    changes: Changes = None,
    cases: Cases = None,
    data: DataFolder = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Forecast the cost of the runs from a few steps of every entry; run nothing.",
        ),
    ] = False,
    wandb: Annotated[
        Literal["off", "offline", "online"] | None,
        typer.Option(
            help="W&B runs of all trainings: offline files below the study's folder, for wandb "
            "sync, or online, with WANDB_API_KEY (default: WANDB_MODE, or else online if there is "
            "a key, offline if not).",
        ),
    ] = None,
    track: Annotated[
        Literal["wandb", "mlflow", "tensorboard"] | None,
        typer.Option(help="Where all trainings are tracked (default: wandb); files, unless asked."),
    ] = None,
    smoke: Annotated[
        bool,
        typer.Option(
            "--smoke",
            help="Run everything in the studies once, small and on stand-ins for their data, in a "
            "temporary folder: does it run?",
        ),
    ] = False,
) -> int:
    """Run studies and write their reports.

    All trainings of a study, searches included, are trials of one Ray Tune run.
    """

    studies = _load_studies(paths or [quickstart()], changes or (), seeds, cases or (), data)
    from autoaug_ray.commands import run

    if smoke:
        return run.smoke_studies(studies)
    return run.run_studies(
        studies, out=out, bank=bank, resume=resume, dry_run=dry_run, wandb=wandb,
        named=bool(cases), track=track,
    )  # fmt: skip


@_words.command("calibrate")
def _calibrate(
    paths: Studies = None,
    seeds: Seeds = None,
    changes: Changes = None,
    cases: Cases = None,
    data: DataFolder = None,
) -> int:
    """Measure a few steps of every entry, side by side: ms and GFLOP per step.

    They are taken by turns in one process, on the device that the study's trials would hold. Where
    the clock and the arithmetic disagree by more than 15 %, the likely cause is said.
    """
    studies = _load_studies(paths or [quickstart()], changes or (), seeds, cases or (), data)
    from autoaug_ray.commands import run

    return run.calibrate_studies(studies, named=bool(cases))


def quickstart() -> Path:
    """The study of the quick start.

    A wheel holds search_spaces/ in the package, a checkout beside it.
    """
    package = Path(__file__).parents[1]
    places = [root / "search_spaces" / "quickstart.yaml" for root in (package, package.parent)]
    return next((path for path in places if path.is_file()), places[0])


def _load_studies(
    paths: Sequence[Path],
    changes: Sequence[str],
    seeds: int | None,
    cases: Sequence[str],
    data: Path | None,
) -> "list[list[Study]]":
    """The cases of every study, all read before any is run. Raises UserError.

    `cases`: only those of these names; `data`: below which folder their datasets are.
    """
    from autoaug_ray import config
    from autoaug_ray.commands import choose

    studies = []
    for path in paths:
        try:
            loaded = config.load(path, changes=changes, seeds=seeds)
            if cases:
                loaded = choose.only(loaded, cases)
            studies.append([choose.below(s, data) for s in loaded] if data else loaded)
        except UserError as error:
            if len(paths) == 1 or str(path) in str(error):
                raise
            raise UserError(f"{path}: {error}") from None
    return studies


@_words.command("init")
def _init(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            help="With DIR/CLASS/*.png, or DIR/train/CLASS/*.png and DIR/test/CLASS/*.png.",
        ),
    ],
    study: Annotated[
        Path | None,
        typer.Option(metavar="FILE.yaml", help="Where to write it (default: DIR's name)."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE.yaml if it exists.")] = False,
    flip: Annotated[
        Literal["horizontal", "vertical", "none"] | None,
        typer.Option(help="How training images are mirrored (default: as short trainings say)."),
    ] = None,
    budget: Annotated[
        str | None, typer.Option(metavar="TIME", help="Of the study, here: 90s, 30m or 2h.")
    ] = None,
    group_by: Annotated[str | None, typer.Option(metavar="REGEX", help=GROUP_BY)] = None,
) -> int:
    """Propose a study of a folder of images, with reasons."""

    path = study or Path(f"{folder.resolve().name}.yaml")
    if path.exists() and not force:
        raise UserError(f"{path} exists; --force replaces it, --study names another file.")
    from autoaug_ray.commands import init

    return init.propose_study(folder, path, flip, budget, group_by)


@_words.command("pilot")
def _pilot(
    path: Annotated[Path, typer.Argument(metavar="STUDY.yaml")],
    out: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            help="Where DIR/<study>-pilot/ is written; what it holds already is not run again.",
        ),
    ] = Path("runs"),
    epochs: Annotated[
        int | None,
        typer.Option(metavar="N", help="Epochs of a training (default: a third of the study's)."),
    ] = None,
    worth: Annotated[
        float,
        typer.Option(
            metavar="POINTS",
            help="How much better a search would have to be, in points of accuracy.",
        ),
    ] = 1.0,
    changes: Changes = None,
    cases: Cases = None,
    data: DataFolder = None,
) -> int:
    """Ask early and cheaply: is a search worth its compute?

    Runs the study with a third of its epochs and short searches, on 3 seeds and then on more while
    it is undecided. The test set stays closed: a fifth of the pool stands in for it.
    """

    for name, value in (("epochs", epochs), ("worth", worth)):
        if value is not None and value <= 0:
            raise UserError(f"--{name} must be above 0, got {value:g}.")
    (studies,) = _load_studies([path], changes or (), None, cases or (), data)
    from autoaug_ray.commands import pilot

    return pilot.run_pilots(studies, path, out, epochs=epochs, worth=worth)


@_words.command("report")
def _report(
    folder: Annotated[
        str,
        typer.Argument(
            metavar="STUDY_FOLDER",
            help="Of one study, as in runs/quickstart, or s3://bucket/prefix/quickstart.",
        ),
    ],
    wandb: Annotated[
        bool,
        typer.Option(
            "--wandb",
            help="Also create a W&B report, with the key in WANDB_API_KEY, in the project "
            "WANDB_PROJECT (default: autoaug_ray); needs pip install 'autoaug_ray[wandb-report]'.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Write a study's pages anew, without training anything.

    The folder has all they need. With --wandb, W&B also gets the trainings that
    it lacks, and a report of its own: accuracy against device-hours, the table, curves, settings.
    With --json, the answer and the rows of summary.parquet are printed instead, for each case.
    """

    from autoaug_ray.commands import report

    if as_json and wandb:
        raise UserError("--json only prints; leave out --wandb.")
    return report.print_results(folder) if as_json else report.report_folder(folder, publish=wandb)


@_words.command("export")
def _export(
    path: Annotated[
        Path,
        typer.Argument(metavar="POLICY", help="A policy.pt of a finished run, or its folder."),
    ],
    to: Annotated[
        Literal["torchvision", "albumentations", "kornia", "json"],
        typer.Option(help="Whose transform; json: its parameters, in px, degrees and %."),
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to write it (default: beside it).")
    ] = None,
    size: Annotated[
        tuple[int, int] | None,
        typer.Option(metavar="H W", help="The images' size (default: that of the training)."),
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option(metavar="OP", help="Leave this op out; may be given several times."),
    ] = None,
    code: Annotated[
        Path | None,
        typer.Option(metavar="FILE.py", help="What defines the method, if it is your own."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it exists.")] = False,
) -> int:
    """Write a policy for software that does not know of this package.

    What has no equal there is said, and nothing is written.
    """

    from autoaug_ray.commands import export

    return export.export(
        path, to, out, code=code, size=size, without=tuple(without or ()), force=force
    )


def _method_names(incomplete: str) -> list[str]:
    from autoaug_ray.methods import METHODS

    return [name for name in METHODS if name.startswith(incomplete)]


@_words.command("methods")
def _methods(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME", help="A method, to be told its keys.", autocompletion=_method_names
        ),
    ] = None,
    as_json: AsJson = False,
) -> int:
    """What can be compared: all methods, or the keys of one."""
    from autoaug_ray.commands import describe
    from autoaug_ray.commands.console import new_console

    return describe.print_methods(name, new_console(), as_json=as_json)


@_words.command("models")
def _models(
    pattern: Annotated[
        str | None,
        typer.Argument(metavar="PATTERN", help="A part of a name, or as in torchvision:resnet*."),
    ] = None,
    as_json: AsJson = False,
) -> int:
    """What can be trained: all classifiers and the keys of model:, or those that fit PATTERN."""
    from autoaug_ray.commands import describe
    from autoaug_ray.commands.console import new_console

    return describe.print_models(pattern, new_console(), as_json=as_json)


@_words.command("schema")
def _schema() -> int:
    """Print a JSON schema of a study's YAML, for an editor that completes and checks it."""
    from autoaug_ray.commands import describe

    print(json.dumps(describe.study_schema(), indent=1))
    return 0
