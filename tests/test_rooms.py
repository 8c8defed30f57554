"""Who may import whom. The rule is the test."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "autoaug_ray"
HEAVY = {"ray", "wandb", "wandb_workspaces", "diffusers", "transformers", "datasets", "optuna"}
EDGES = {
    "ray": {
        "cluster.py",
        "study.py",
        "shards.py",
        "spot.py",
        "bench/faults.py",
        "bench/scale.py",
    },
    "wandb": {"track.py"},
    "wandb_workspaces": {"track.py"},
    "datasets": {"data/hub.py"},
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
    "data/standins/": {"data"},
    "data/": {"data", "maths", "errors", "settings"},
    "models.py": {"settings", "errors"},
    "storage.py": {"errors"},
    "meter.py": {"storage", "errors"},
    "learner.py": {"maths", "settings"},
    "generate/settings.py": {"settings"},
    "generate/prompts.py": {"errors"},
    "generate/weights.py": {"errors"},
    "generate/plan.py": {"generate", "errors"},
    "generate/bank.py": {"generate", "meter", "record", "storage", "errors"},
    "generate/maker.py": {"generate", "meter", "storage", "errors"},
    "methods/": {
        "methods", "maths", "data", "learner", "generate", "storage", "errors", "settings",
    },
    "config.py": {"methods", "data", "models", "learner", "generate", "errors", "settings"},
    "record.py": {"storage", "errors"},
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
    loaded = f"[m for m in {sorted(HEAVY)} if m in sys.modules]"
    code = f"import sys, autoaug_ray.train; print({loaded})"
    out = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert out.strip() == "[]"


@pytest.mark.parametrize(
    "path", sorted((ROOT / "data/standins").glob("*.py")), ids=lambda p: p.name
)
def test_standins_know_formats_and_nothing_of_their_readers(path):
    for name in imports(path):
        assert name.split(".")[0] in sys.stdlib_module_names | {"numpy", "PIL"} or name.startswith(
            "autoaug_ray.data.standins"
        ), f"{path.name} imports {name}"
