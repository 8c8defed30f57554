"""A policy -> a file for other software."""

from pathlib import Path

from autoaug_ray.errors import UserError
from autoaug_ray.exports import write
from autoaug_ray.policy import load_policy
from autoaug_ray.store.files import write_whole


def export(
    path: Path,
    to: write.Target,
    out: Path | None,
    *,
    code: Path | None = None,
    size: tuple[int, int] | None = None,
    without: tuple[str, ...] = (),
    force: bool = False,
) -> int:
    """Write the policy.pt, or the folder with one, at `path` for other software."""
    file = path / "policy.pt" if path.is_dir() else path
    target = out or file.parent / write.ENDINGS[to]
    if target.exists() and not force:
        raise UserError(f"{target} exists; --force replaces it, --out names another file.")
    if size is not None and min(size) < 1:
        raise UserError(f"--size must be two numbers of pixels above 0, got {size[0]} {size[1]}.")
    try:
        content = write.text(load_policy(file, code), to, size, without)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    write_whole(target, content.encode())
    print(f"wrote {target}")
    return 0
