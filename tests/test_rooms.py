"""Who may import whom. The rule is the test."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "autoaug_ray"
HEAVY = {"ray", "wandb", "diffusers", "transformers", "optuna"}
EDGES = {
    "ray": {"study.py", "shards.py"},
    "optuna": {"methods/fast_autoaugment.py"},
    "diffusers": {f"generate/{f}.py" for f in ("img2img", "inversion", "work", "pretrain")},
    "transformers": {
        f"generate/{f}.py" for f in ("captions", "embeddings", "loading", "work", "pretrain")
    },
}
BELOW = {
    "errors.py": set(),
    "settings.py": set(),
    "maths/": {"maths"},
    "data/": {"data", "maths", "errors", "settings"},
    "models.py": {"settings"},
    "meter.py": set(),
    "learner.py": {"maths", "settings"},
    "generate/settings.py": {"settings"},
    "generate/prompts.py": {"errors"},
    "generate/weights.py": {"errors"},
    "generate/plan.py": {"generate", "errors"},
    "generate/bank.py": {"generate", "meter", "record", "errors"},
    "generate/maker.py": {"generate", "meter", "errors"},
    "methods/": {"methods", "maths", "data", "learner", "generate", "errors", "settings"},
    "config.py": {"methods", "data", "models", "learner", "generate", "errors", "settings"},
    "record.py": set(),
    "train.py": {
        "config", "methods", "data", "models", "learner", "generate", "meter", "maths", "errors",
    },
}  # fmt: skip
"""Every other file is the outside, and may import anything of these."""


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: absolute imports only"
            yield node.module
            if node.module == "autoaug_ray":
                yield from (f"autoaug_ray.{a.name}" for a in node.names)


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_inward(path):
    where = path.relative_to(ROOT).as_posix()
    room = next((r for r in BELOW if where.startswith(r)), None)
    for name in imports(path):
        top = name.split(".")[0]
        if top in HEAVY:
            assert where in EDGES.get(top, set()), f"{where} imports {top}"
        if room is not None and name.startswith("autoaug_ray."):
            assert name.split(".")[1] in BELOW[room], f"{where} imports {name}"


def test_training_loads_no_heavy_library():
    code = (
        "import sys, autoaug_ray.train; "
        "print([m for m in ('ray', 'wandb', 'diffusers', 'transformers') if m in sys.modules])"
    )
    out = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert out.strip() == "[]"
