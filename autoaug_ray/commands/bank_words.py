"""The words of `autoaug-ray bank`; their work is in bank.py."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

from autoaug_ray.commands.options import PLAIN

words = typer.Typer(**PLAIN)
_Edit = StrEnum("_Edit", ["fixed", "local", "transfer"])
PlanKey = Annotated[str, typer.Argument(metavar="PLAN", help="A plan's key, or its beginning.")]


@words.callback()
def _bank_folder(
    context: typer.Context,
    folder: Annotated[
        str,
        typer.Option("--bank", metavar="DIR", help="The bank's folder, or s3://bucket/prefix."),
    ] = "runs/bank",
) -> None:
    """Look at generated images, check them, take some out."""
    context.obj = folder


@words.command("ls")
def _bank_ls(
    context: typer.Context,
    classes: Annotated[bool, typer.Option("--classes", help="Counts per class too.")] = False,
) -> int:
    """Plans, images and what they cost."""

    from autoaug_ray.commands import bank

    return bank.ls(bank.open_bank(context.obj), classes=classes)


@words.command("verify")
def _bank_verify(context: typer.Context) -> int:
    """Read everything and name what is broken."""

    from autoaug_ray.commands import bank

    return bank.verify(bank.open_bank(context.obj))


@words.command("sheet")
def _bank_sheet(
    context: typer.Context,
    plan: PlanKey,
    out: Annotated[
        Path,
        typer.Option(metavar="PNG", help="The picture; of every class: a folder of them."),
    ],
    class_name: Annotated[
        str | None, typer.Option("--class", metavar="NAME", help="One class (default: every one).")
    ] = None,
    sources: Annotated[int, typer.Option(metavar="N", help="Rows.")] = 6,
) -> int:
    """Pictures of a class's edits with their prompts."""

    from autoaug_ray.commands import bank

    return bank.sheet(bank.open_bank(context.obj), plan, class_name, out, rows=sources)


@words.command("export")
def _bank_export(
    context: typer.Context,
    plan: PlanKey,
    out: Annotated[Path, typer.Option(metavar="DIR")],
    form: Annotated[Literal["imagefolder", "webdataset"], typer.Option("--format")] = "imagefolder",
    kinds: Annotated[
        list[_Edit] | None,
        typer.Option(
            "--kind",
            metavar="<fixed|local|transfer>",
            help="Only these edits; may be given several times.",
        ),
    ] = None,
    no_sources: Annotated[
        bool, typer.Option("--no-sources", help="Leave the real images out.")
    ] = False,
) -> int:
    """Write a plan's images for other software."""

    from autoaug_ray.commands import bank

    opened = bank.open_bank(context.obj)
    return bank.export(opened, plan, out, form, kinds=kinds or (), sources=not no_sources)
