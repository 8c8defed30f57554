"""The rooms of the package and who may import whom, for whoever looks for the place of something.

python tests/rooms.py      prints the rooms and their imports; status 1 if one runs back up
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent / "autoaug_ray"

BELOW: dict[str, set[str]] = {
    "errors": set(),
    "own_code": {"errors"},
    "settings": {"own_code", "errors"},
    "maths": set(),
    "store": {"errors"},
    "data": {"maths", "own_code", "settings", "errors"},
    "models": {"settings", "errors"},
    "recipe": {"maths", "models", "settings"},
    "learner": {"recipe", "maths", "settings", "errors"},
    "generate": {"store", "data", "models", "settings", "errors"},
    "methods": {
        "maths", "store", "data", "learner", "generate", "own_code", "settings", "errors",
    },
    "evaluation": {"methods", "data", "learner"},
    "config": {
        "methods", "data", "models", "learner", "generate", "own_code",
        "settings", "errors",
    },
    "targets": {"maths"},
    "policy": {"targets", "config", "methods", "maths", "store", "own_code", "errors"},
    "exports": {"policy", "maths", "errors"},
    "train": {
        "evaluation", "config", "methods", "maths", "store", "data", "models", "learner",
        "generate", "settings", "errors",
    },
    "schedule": {
        "train", "policy", "config", "methods", "maths", "store", "data", "models", "learner",
        "generate", "own_code", "settings", "errors",
    },
    "report": {
        "policy", "config", "methods", "maths", "store", "data", "settings", "errors",
    },
    "commands": {
        "report", "schedule", "train", "evaluation", "exports", "policy", "config", "methods",
        "maths", "store", "data", "models", "generate", "own_code", "settings", "errors",
    },
    "python": {
        "commands", "report", "schedule", "config", "methods", "store", "settings", "errors",
    },
    "examples": {"load_policy"},  # what everybody else may import
    "bench": {
        "commands", "report", "schedule", "train", "policy", "config", "methods", "maths", "store",
        "data", "models", "learner", "generate", "settings", "errors",
    },
}  # fmt: skip
"""What a room may import besides itself: rooms above it in this list, which are nearer to the
maths."""

EDGES: dict[str, set[str]] = {
    "ray": {"schedule/", "bench/"},
    "wandb": {"report/wandb.py"},
    "wandb_workspaces": {"report/wandb.py"},
    "diffusers": {"generate/"},
    "transformers": {"generate/", "models/libraries.py", "examples/"},
    "lightning": {"examples/"},
    "timm": {"models/libraries.py", "models/listing.py", "models/layers.py"},
    "datasets": {"data/hub.py"},
    "optuna": {"methods/fast_autoaugment.py"},
}
"""Heavy libraries -> the rooms or files that may import them."""


def room_of(path: Path) -> str:
    """The folder or file below the package's root: data/files.py and data/ are both `data`."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """Full names of all modules that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: absolute imports only"
            yield node.module
            if node.module == "autoaug_ray":
                yield from (f"autoaug_ray.{alias.name}" for alias in node.names)


def files() -> list[Path]:
    return [p for p in sorted(ROOT.rglob("*.py")) if p.parent != ROOT or p.name[0] != "_"]


def arrows() -> dict[str, dict[str, set[str]]]:
    """room -> room that it imports -> the files that do so."""
    out: dict[str, dict[str, set[str]]] = {room: {} for room in BELOW}
    for path in files():
        for name in imports(path):
            top, *rest = name.split(".")
            if top == "autoaug_ray" and rest and rest[0] != room_of(path):
                where = path.relative_to(ROOT).as_posix()
                out.setdefault(room_of(path), {}).setdefault(rest[0], set()).add(where)
    return out


def faults() -> list[str]:
    """A sentence for each import that breaks the rule."""
    out = []
    for room, targets in arrows().items():
        for target in sorted(targets.keys() - BELOW.get(room, set()) - {"__version__"}):
            out += [f"{path} imports {target}, which is not below it" for path in targets[target]]
    for path in files():
        where = path.relative_to(ROOT).as_posix()
        for top in {name.split(".")[0] for name in imports(path)} & EDGES.keys():
            if not where.startswith(tuple(EDGES[top])):
                out.append(f"{where} imports {top}, which {', '.join(sorted(EDGES[top]))} may")
    return out


def main() -> int:
    count = {room: sum(room_of(p) == room for p in files()) for room in BELOW}
    for room, targets in arrows().items():
        size = f"{count[room]} file{'s' * (count[room] != 1)}"
        print(f"{room:10} {size:>9}  -> {', '.join(r for r in BELOW if r in targets) or '-'}")
    for fault in faults():
        print(f"runs back up: {fault}")
    return 1 if faults() else 0


if __name__ == "__main__":
    sys.exit(main())
