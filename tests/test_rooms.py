"""The rule of rooms.py holds, and can fail."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import rooms


def test_imports_point_inward():
    assert rooms.faults() == []


@pytest.mark.parametrize(
    ("where", "line", "said"),
    [
        ("maths/new.py", "import autoaug_ray.data", "maths/new.py imports data"),
        ("data/new.py", "def f():\n    from autoaug_ray import train", "data/new.py imports train"),
        ("train.py", "import ray.tune", "train.py imports ray"),
        ("report/html.py", "import wandb", "report/html.py imports wandb"),
    ],
)
def test_an_import_that_runs_back_up_is_told(tmp_path, monkeypatch, capsys, where, line, said):
    path = tmp_path / where
    path.parent.mkdir(exist_ok=True)
    path.write_text(line)
    monkeypatch.setattr(rooms, "ROOT", tmp_path)
    assert rooms.main() == 1
    assert said in capsys.readouterr().out


def test_training_loads_no_heavy_library():
    loaded = f"[m for m in {sorted(rooms.EDGES)} if m in sys.modules]"
    code = f"import sys, autoaug_ray.train; print({loaded})"
    out = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert out.strip() == "[]"


def test_standins_know_formats_and_nothing_of_their_readers():
    known = sys.stdlib_module_names | {"numpy", "PIL"}
    for path in (rooms.ROOT / "data/standins").glob("*.py"):
        for name in rooms.imports(path):
            own = name.startswith("autoaug_ray.data.standins")
            assert own or name.split(".")[0] in known, f"{path.name} imports {name}"


def test_no_file_and_no_function_outgrows_its_reader():
    own = [*rooms.ROOT.rglob("*.py"), *Path(__file__).parent.rglob("*.py")]
    long = [str(path) for path in own if path.read_text().count("\n") > 500]
    for path in rooms.ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= 80:
                long.append(f"{path}: {node.name}")
    assert long == []


def test_a_wheel_holds_every_room():
    root = rooms.ROOT.parent
    listed = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    inits = [path.parent.relative_to(root) for path in rooms.ROOT.rglob("__init__.py")]
    assert sorted(listed) == sorted(
        [".".join(p.parts) for p in inits] + ["autoaug_ray.search_spaces"]
    )
