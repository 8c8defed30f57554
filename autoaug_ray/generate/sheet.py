"""A contact sheet: what became of a class's images, and by which words."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from autoaug_ray.errors import UserError
from autoaug_ray.generate.bank import Bank
from autoaug_ray.generate.bank_files import decode
from autoaug_ray.generate.own import OwnImages
from autoaug_ray.generate.plan import Edit

CELL = 168
"""Side of a shown image in pixels."""
TEXT = 13
LINES = 4
"""Lines of a prompt; a longer one is cut."""
MARGIN = 10
INK, FAINT, BAD = "#1a1a1a", "#8a8a8a", "#c0392b"


def sheet(
    bank: Bank, plan_key: str, class_name: str, *, sources: int = 6, per_kind: int = 2
) -> Image.Image:
    """A page with a row per source; its columns are the source, then edits of each kind.

    The sources are spread over the class's images.

    Rejected edits are framed, with the reason. Raises UserError for an unknown plan or class.
    """
    plan = bank.read_plan(plan_key)
    if class_name not in plan.classes:
        raise UserError(
            f"plan {plan_key} has no class {class_name!r}; its classes: {', '.join(plan.classes)}."
        )
    rows = [row for row in bank.sources(plan_key) if row["class_name"] == class_name]
    rows = [rows[i * len(rows) // min(sources, len(rows))] for i in range(min(sources, len(rows)))]
    edits: dict[tuple[int, str], list[Edit]] = {}
    for edit in plan.edits:
        edits.setdefault((edit.source, edit.kind), []).append(edit)
    columns = [
        (kind, number)
        for kind in plan.kinds
        for number in range(
            min(per_kind, max(len(edits.get((r["position"], kind), ())) for r in rows))
        )
    ]
    shown = [e for r in rows for k, _ in columns for e in edits.get((r["position"], k), ())]
    images = {key: (data, reject) for key, data, reject in bank.encoded(e.key for e in shown)}

    line = TEXT + 4
    head, width = 2 * MARGIN + 2 * line, CELL + MARGIN
    height = CELL + LINES * line + 2 * MARGIN
    page = Image.new(
        "RGB", (MARGIN + width * (1 + len(columns)), head + height * len(rows)), "white"
    )
    pen, font = ImageDraw.Draw(page), _font(TEXT)
    settings = plan.settings
    title = (
        f"{class_name}: {settings.model}, strength {settings.strength:g}, guidance "
        f"{settings.guidance:g}, {settings.calls} calls ({settings.solver})"
    )
    pen.text((MARGIN, MARGIN), title, INK, font)
    for x, name in enumerate(["source", *(kind for kind, _ in columns)]):
        pen.text((MARGIN + width * x, MARGIN + line), name, FAINT, font)
    for y, row in enumerate(rows):
        top = head + height * y
        page.paste(_shown(decode(row["image"])), (MARGIN, top))
        pen.text((MARGIN, top + CELL + 4), f"image {row['position']}", FAINT, font)
        for x, (kind, number) in enumerate(columns, start=1):
            some = edits.get((row["position"], kind), [])
            if number >= len(some):
                continue
            edit, left = some[number], MARGIN + width * x
            data, reject = images.get(edit.key, (None, "not made"))
            if data is not None:
                page.paste(_shown(decode(data)), (left, top))
            if reject is not None:
                pen.rectangle((left, top, left + CELL - 1, top + CELL - 1), outline=BAD, width=3)
                pen.text((left + 8, top + 8), reject, BAD, font)
            notes = [] if edit.note is None else [f"(caption: {edit.note})"]
            lines = _wrapped(edit.prompt, font, CELL, LINES - len(notes))
            for i, text in enumerate([*lines, *notes]):
                color = INK if i < len(lines) else BAD
                pen.text((left, top + CELL + 4 + i * line), text, color, font)
    return page


def own_sheet(images: OwnImages, label: int, *, most: int = 6) -> Image.Image:
    """A row of one's own images of a class, at most so many, spread over all of them."""
    members = (images.labels == label).nonzero().flatten().tolist()
    shown = [members[i * len(members) // most] for i in range(most)]
    shown = list(dict.fromkeys(shown)) if members else []
    head = 2 * MARGIN + TEXT + 4
    page = Image.new(
        "RGB", (MARGIN + (CELL + MARGIN) * most, head + CELL + MARGIN), "white"
    )  # as wide for a class with fewer
    title = f"{images.classes[label]}: {len(members)} own images, made elsewhere"
    ImageDraw.Draw(page).text((MARGIN, MARGIN), title, INK, _font(TEXT))
    for x, i in enumerate(shown):
        page.paste(_shown(images.images[i]), (MARGIN + (CELL + MARGIN) * x, head))
    return page


def _shown(image: Tensor) -> Image.Image:
    """The image on a cell: enlarged by a whole factor, without smoothing, or reduced."""
    array = image.permute(1, 2, 0).numpy()
    picture = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array).convert("RGB")
    factor = CELL / max(picture.size)
    if factor >= 1:
        scale = int(factor)
        picture = picture.resize(
            (picture.width * scale, picture.height * scale), Image.Resampling.NEAREST
        )
    else:
        size = (round(picture.width * factor), round(picture.height * factor))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    cell = Image.new("RGB", (CELL, CELL), "#f2f2f2")
    cell.paste(picture, ((CELL - picture.width) // 2, (CELL - picture.height) // 2))
    return cell


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int, lines: int) -> Sequence[str]:
    out = [""]
    for word in text.split():
        longer = f"{out[-1]} {word}".strip()
        if font.getlength(longer) <= width or not out[-1]:
            out[-1] = longer
        else:
            out.append(word)
    if len(out) > lines:
        out = [*out[: lines - 1], f"{out[lines - 1]} ..."]
    return out


def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which has more alphabets than Pillow's own font."""
    import matplotlib

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(path), size)
