"""`autoaug-ray bank`: look at a bank, check it, and take images out of it."""

import argparse
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from autoaug_ray.errors import UserError, exit_status
from autoaug_ray.generate.bank import Bank
from autoaug_ray.generate.bank_export import export_imagefolder, export_webdataset
from autoaug_ray.generate.bank_files import Plan
from autoaug_ray.generate.settings import EDITS
from autoaug_ray.store import meter, places


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 all is well, 1 `verify` found something, 2 wrong input, 130 interrupted."""
    options = _parser().parse_args(arguments)

    def work() -> int:
        root = places.place(options.bank)
        if not root.is_dir():
            raise UserError(f"--bank: {root} is not a folder.")
        status: int = options.work(Bank(root), options)
        return status

    return exit_status(work, interrupted="interrupted")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="autoaug-ray bank", description=__doc__)
    parser.add_argument(
        "--bank", default="runs/bank", metavar="DIR",
        help="the bank's folder, or s3://bucket/prefix (default: runs/bank)",
    )  # fmt: skip
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    verb = verbs.add_parser("ls", help="plans, images and what they cost")
    verb.add_argument("--classes", action="store_true", help="counts per class too")
    verb.set_defaults(work=_ls)

    verb = verbs.add_parser("verify", help="read everything and name what is broken")
    verb.set_defaults(work=_verify)

    verb = verbs.add_parser("sheet", help="pictures of a class's edits with their prompts")
    verb.add_argument("plan", metavar="PLAN", help="a plan's key, or its beginning")
    verb.add_argument("--class", dest="class_name", metavar="NAME", help="default: every class")
    verb.add_argument(
        "--out", type=Path, required=True, metavar="PNG",
        help="the picture; of every class: a folder of them",
    )  # fmt: skip
    verb.add_argument("--sources", type=int, default=6, metavar="N", help="rows (default: 6)")
    verb.set_defaults(work=_sheet)

    verb = verbs.add_parser("export", help="write a plan's images for other software")
    verb.add_argument("plan", metavar="PLAN", help="a plan's key, or its beginning")
    verb.add_argument("--format", choices=("imagefolder", "webdataset"), default="imagefolder")
    verb.add_argument("--out", type=Path, required=True, metavar="DIR")
    verb.add_argument(
        "--kind",
        action="append",
        choices=EDITS,
        help="only these edits; may be given several times",
    )
    verb.add_argument("--no-sources", action="store_true", help="leave the real images out")
    verb.set_defaults(work=_export)
    return parser


def _ls(bank: Bank, options: argparse.Namespace) -> int:
    held = bank.index()
    rejected = {key for key, _, reject in bank.encoded(held) if reject is not None}
    for plan_key in bank.plans():
        plan = bank.read_plan(plan_key)
        hours = sum(bank.cost(plan_key, plan.kinds).values()) / 3600
        said = plan.settings
        print(
            f"plan {plan_key}  {plan.images} images, {len(plan.classes)} classes, {said.model}, "
            f"strength {said.strength:g}, {said.calls} calls ({said.solver}), "
            f"{hours:.3g} device-hours"
        )
        for line in _counts(plan, held, rejected, classes=options.classes):
            print(f"  {line}")
    size = sum(places.size(path) for path in bank.shards())
    line = f"{len(bank.shards())} shards, {len(held)} images, {size / 1e6:.1f} MB"
    print(f"{line}, {sum(bank.spent().values()) / 3600:.3g} device-hours ({_devices(bank)})")
    for name, entry in bank.quarantined().items():
        print(f"quarantined: shard {name}, {len(entry['keys'])} images: {entry['error']}")
    return 0


def _counts(
    plan: Plan, held: Iterable[str], rejected: Iterable[str], *, classes: bool
) -> Iterator[str]:
    held, rejected = set(held), set(rejected)
    for class_name in (None, *(plan.classes if classes else ())):
        edits = [e for e in plan.edits if class_name in (None, e.class_name)]
        parts = []
        for kind in plan.kinds:
            keys = [e.key for e in edits if e.kind == kind]
            here = sum(key in held for key in keys)
            bad = sum(key in rejected for key in keys)
            parts.append(f"{kind} {here}/{len(keys)}" + (f" ({bad} rejected)" if bad else ""))
        notes = Counter(e.note for e in edits if e.note is not None)
        why = ", ".join(f"{number} {note}" for note, number in notes.most_common())
        line = f"{class_name or 'all classes'}: {', '.join(parts)}"
        yield line + (f"; fixed prompt for captions: {why}" if why else "")


def _devices(bank: Bank) -> str:
    return ", ".join(sorted({line["device"] for line in meter.read(bank.ledger)})) or "none"


def _verify(bank: Bank, options: argparse.Namespace) -> int:
    problems = bank.verify()
    for problem in problems:
        print(problem)
    if problems:
        print(f"{len(problems)} problems; a broken file can be deleted, and is made again")
        return 1
    print(f"{len(bank.shards())} shards, {len(bank.plans())} plans: all well")
    return 0


def _sheet(bank: Bank, options: argparse.Namespace) -> int:
    from autoaug_ray.generate.sheet import sheet

    plan_key = _plan(bank, options.plan)
    if options.sources < 1:
        raise UserError(f"--sources must be at least 1, got {options.sources}.")
    if options.class_name is not None:
        paths = {options.class_name: options.out}
    else:
        names = bank.read_plan(plan_key).classes
        paths = {name: options.out / f"{name.replace('/', '_')}.png" for name in names}
    for name, path in paths.items():
        page = sheet(bank, plan_key, name, sources=options.sources)
        path.parent.mkdir(parents=True, exist_ok=True)
        page.save(path, "PNG")
        print(path)
    return 0


def _export(bank: Bank, options: argparse.Namespace) -> int:
    write = {
        "imagefolder": export_imagefolder,
        "webdataset": export_webdataset,
    }[options.format]
    plan_key, kinds = _plan(bank, options.plan), options.kind or EDITS
    number = write(bank, plan_key, options.out, kinds, sources=not options.no_sources)
    print(f"{number} images in {options.out}")
    return 0


def _plan(bank: Bank, beginning: str) -> str:
    found = [key for key in bank.plans() if key.startswith(beginning)]
    if len(found) != 1:
        what = f"{len(found)} plans begin" if found else "no plan begins"
        known = ", ".join(bank.plans()) or "none"
        raise UserError(f"bank {bank.root}: {what} with {beginning!r}; known: {known}.")
    return found[0]
