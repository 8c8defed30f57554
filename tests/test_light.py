"""A study without generators runs where their libraries, and all extras, are not installed."""

import os
import re
import subprocess
import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
HIDE = """
import sys
from importlib.machinery import PathFinder

HIDDEN = {hidden!r}


class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        found = super().find_spec(name, path, target)
        hidden = name.partition(".")[0] in HIDDEN
        brought_by_ray = found is not None and "thirdparty_files" in (found.origin or "")
        return None if hidden and not brought_by_ray else found


sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
"""
STUDY = """
dataset: {name: fashion-mnist-mini, train_size: 160, test_size: 60}
model: {name: cnn, width: 2}
train: {epochs: 1, batch_size: 32}
seeds: 1
methods: {none: , bilevel: {every: 2}}
"""


def light():
    """What the README says is enough, as pip is told."""
    text = (ROOT / "autoaug_ray/README.md").read_text()
    (line,) = re.findall(r"^pip install (torch torchvision kornia .*\\\n.*)$", text, re.MULTILINE)
    return [name for name in line.replace("'", "").split() if name != "\\"]


def installed_for(requirements):
    """The names of all distributions that pip installs for these."""
    found, todo = set(), [Requirement(line) for line in requirements]
    while todo:
        asked = todo.pop()
        key = canonicalize_name(asked.name), frozenset(asked.extras)
        if key in found:
            continue
        found.add(key)
        with suppress(metadata.PackageNotFoundError):
            for inner in map(Requirement, metadata.requires(asked.name) or ()):
                extras = ("", *asked.extras)
                if not inner.marker or any(inner.marker.evaluate({"extra": e}) for e in extras):
                    todo.append(inner)
    return {name for name, _ in found}


def own_requirements():
    import tomllib

    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]


def test_the_light_installation_lacks_the_generators_and_wandb_alone():
    names = {canonicalize_name(Requirement(line).name) for line in light()}
    asked = {canonicalize_name(Requirement(line).name) for line in own_requirements()}
    heavy = {"diffusers", "transformers", "accelerate", "huggingface-hub", "wandb"}
    assert names == asked - heavy
    assert not heavy & installed_for(light())


@pytest.fixture
def hidden(tmp_path):
    """The environment of a process in which only what is installed with the light packages is to be
    found, as are its children."""
    there = installed_for(light())
    modules = {
        module for module, names in metadata.packages_distributions().items()
        if not {canonicalize_name(name) for name in names} & {*there, "autoaug-ray"}
    }  # fmt: skip
    assert {"diffusers", "transformers", "wandb", "optuna", "timm"} <= modules
    place = tmp_path / "site"
    place.mkdir()
    (place / "sitecustomize.py").write_text(HIDE.format(hidden=modules))
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(place), str(ROOT)])}


@pytest.mark.nightly
def test_bilevel_runs_without_generators_and_wandb(hidden, tmp_path):
    (tmp_path / "tiny.yaml").write_text(STUDY)

    def call(*words):
        line = [sys.executable, "-m", "autoaug_ray", *words]
        return subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, env=hidden)

    alone = subprocess.run([sys.executable, "-c", "import diffusers"], env=hidden)
    assert alone.returncode == 1
    done = call("tiny.yaml", "--wandb", "off")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "bilevel" in done.stdout and "report: runs/tiny/report.html" in done.stdout
    assert call("report", "runs/tiny").returncode == 0
    export = call("export", "runs/tiny/policies/bilevel/seed-0", "--to", "json")
    assert export.returncode == 0, export.stderr
