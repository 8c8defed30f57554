"""`autoaug-ray bank`: look at a bank, check it, and take images out of it.

Each verb returns an exit status.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from autoaug_ray.errors import UserError
from autoaug_ray.generate import bank_files
from autoaug_ray.generate.bank import Bank
from autoaug_ray.generate.bank_export import export_imagefolder, export_webdataset
from autoaug_ray.generate.bank_files import Plan
from autoaug_ray.generate.settings import EDITS
from autoaug_ray.store import meter, places


def open_bank(root: str) -> Bank:
    """The bank in a folder or below s3://bucket/prefix. Raises UserError if nothing is there."""
    folder = places.place(root)
    if not folder.is_dir():
        raise UserError(f"--bank: {folder} is not a folder.")
    return Bank(folder)


def ls(bank: Bank, *, classes: bool) -> int:
    """Print plans, counts of images and device-hours."""
    stored = bank.index()
    rejected = {key for key, _, reject in bank.encoded(stored) if reject is not None}
    for plan_key in bank.plans():
        plan = bank.read_plan(plan_key)
        hours = sum(bank.cost(plan_key).values()) / 3600
        settings = plan.settings
        print(
            f"plan {plan_key}  {plan.images} images, {len(plan.classes)} classes, "
            f"{settings.model}, strength {settings.strength:g}, {settings.calls} calls "
            f"({settings.solver}), {hours:.3g} device-hours"
        )
        for line in _counts(plan, stored, rejected, classes=classes):
            print(f"  {line}")
    for path in bank.own_files():
        images = bank_files.read_own(path)
        print(f"plan {path.stem}  {len(images.labels)} images of one's own")
    size = sum(places.size(path) for path in bank.shards())
    line = f"{len(bank.shards())} shards, {len(stored)} images, {size / 1e6:.1f} MB"
    print(f"{line}, {sum(bank.spent().values()) / 3600:.3g} device-hours ({_devices(bank)})")
    for name, entry in bank.quarantined().items():
        print(f"quarantined: shard {name}, {len(entry['keys'])} images: {entry['error']}")
    return 0


def _counts(
    plan: Plan, stored: Iterable[str], rejected: Iterable[str], *, classes: bool
) -> Iterator[str]:
    stored, rejected = set(stored), set(rejected)
    for class_name in (None, *(plan.classes if classes else ())):
        edits = [e for e in plan.edits if class_name in (None, e.class_name)]
        parts = []
        for kind in plan.kinds:
            keys = [e.key for e in edits if e.kind == kind]
            count = sum(key in stored for key in keys)
            bad = sum(key in rejected for key in keys)
            parts.append(f"{kind} {count}/{len(keys)}" + (f" ({bad} rejected)" if bad else ""))
        notes = Counter(e.note for e in edits if e.note is not None)
        why = ", ".join(f"{number} {note}" for note, number in notes.most_common())
        line = f"{class_name or 'all classes'}: {', '.join(parts)}"
        yield line + (f"; fixed prompt for captions: {why}" if why else "")


def _devices(bank: Bank) -> str:
    return ", ".join(sorted({line["device"] for line in meter.read(bank.ledger)})) or "none"


def verify(bank: Bank) -> int:
    """Read everything and print what is broken; 1 if anything is."""
    problems = bank.verify()
    for problem in problems:
        print(problem)
    if problems:
        print(f"{len(problems)} problems; a broken file can be deleted, and is made again")
        return 1
    print(f"{len(bank.shards())} shards, {len(bank.plans())} plans: all well")
    return 0


def sheet(bank: Bank, plan: str, class_name: str | None, out: Path, *, rows: int) -> int:
    """Write a picture of a class's edits to `out`; of every class (None), into that folder."""
    from autoaug_ray.generate import sheet as sheets

    plan_key = _plan(bank, plan)
    if rows < 1:
        raise UserError(f"--sources must be at least 1, got {rows}.")
    if class_name is not None:
        paths = {class_name: out}
    else:
        names = bank.read_plan(plan_key).classes
        paths = {name: out / f"{name.replace('/', '_')}.png" for name in names}
    for name, path in paths.items():
        page = sheets.sheet(bank, plan_key, name, sources=rows)
        path.parent.mkdir(parents=True, exist_ok=True)
        page.save(path, "PNG")
        print(path)
    return 0


def export(
    bank: Bank, plan: str, out: Path, form: str, *, kinds: Sequence[str], sources: bool
) -> int:
    """Write a plan's images of these kinds (none: of all) to `out`, and the real ones too."""
    write = {
        "imagefolder": export_imagefolder,
        "webdataset": export_webdataset,
    }[form]
    chosen = [kind for kind in EDITS if kind in kinds] or EDITS
    number = write(bank, _plan(bank, plan), out, chosen, sources=sources)
    print(f"{number} images in {out}")
    return 0


def _plan(bank: Bank, beginning: str) -> str:
    found = [key for key in bank.plans() if key.startswith(beginning)]
    if len(found) != 1:
        what = f"{len(found)} plans begin" if found else "no plan begins"
        known = ", ".join(bank.plans()) or "none"
        raise UserError(f"bank {bank.root}: {what} with {beginning!r}; known: {known}.")
    return found[0]
