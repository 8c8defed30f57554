"""The examples run: a policy in the loops of others, and the notebook from top to bottom."""

import ast
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from torch import nn

from autoaug_ray import load_policy
from autoaug_ray.methods.base import Task
from autoaug_ray.methods.predefined import Predefined
from autoaug_ray.store.files import save_state

FOLDER = Path(__file__).parents[1] / "autoaug_ray/examples"


@pytest.fixture
def policy(tmp_path):
    path = tmp_path / "policy.pt"
    method = Predefined(translate=2)
    shape = Task(3, 32, 32, (6, 6)).plain()
    save_state(path, {"method": method.model_dump_json(), "shape": shape, "state": {}})
    return str(path)


@pytest.fixture
def images(tmp_path):
    """train/ and test/ with two classes of six images, dark and light."""
    for part in ("train", "test"):
        for name, level in (("dark", 40), ("light", 180)):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(6):
                image = Image.new("RGB", (40, 30), (level + i, level, level))
                image.save(tmp_path / part / name / f"{i}.png")
    return tmp_path


class Tiny(nn.Module):
    """In the place of a ResNet-18."""

    def __init__(self, num_classes):
        super().__init__()
        self.layers = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, num_classes)
        )

    def forward(self, x):
        return self.layers(x)


@pytest.fixture
def example(monkeypatch):
    """Imports an example, whose policy then counts the images that it is given."""
    seen = []

    def load(path):
        policy = load_policy(path)
        policy.register_forward_pre_hook(
            lambda module, inputs: seen.append(getattr(inputs[0], "shape", inputs[0].size))
        )
        return policy

    def make(name):
        module = importlib.import_module(f"autoaug_ray.examples.{name}")
        monkeypatch.setattr(module, "load_policy", load)
        if hasattr(module, "models"):
            monkeypatch.setattr(module.models, "resnet18", Tiny)
        return module, seen

    return make


def test_a_plain_loop_augments_batches(example, policy, images):
    module, seen = example("with_dataloader")
    loss = module.train(policy, str(images / "train"), size=32, epochs=2)
    assert seen == [(12, 3, 32, 32)] * 2 and 0 < loss < 2


@pytest.mark.nightly
@pytest.mark.filterwarnings("default")  # its own
def test_lightning_augments_training_batches_alone(example, policy, images, tmp_path):
    pytest.importorskip("lightning")
    module, seen = example("with_lightning")
    accuracy = module.train(
        policy, str(images), size=32, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, accelerator="cpu", default_root_dir=tmp_path,
    )  # fmt: skip
    assert seen == [(12, 3, 32, 32)] and 0 <= accuracy <= 1


@pytest.mark.nightly
@pytest.mark.filterwarnings("default")  # its own
def test_the_trainer_augments_training_images_alone(example, policy, images, tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
        image_size=32, patch_size=16,
    )  # fmt: skip
    network = tmp_path / "network"
    transformers.ViTForImageClassification(config).save_pretrained(network)
    size = {"height": 32, "width": 32}
    transformers.ViTImageProcessor(size=size).save_pretrained(network)
    module, seen = example("with_trainer")
    accuracy = module.train(
        policy, str(images), str(network), output_dir=str(tmp_path / "out"), num_train_epochs=2,
        use_cpu=True, disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    assert seen == [(32, 32)] * 24 and 0 <= accuracy <= 1


def cells():
    notebook = json.loads((FOLDER / "notebook.ipynb").read_text())
    return ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]


def test_the_notebook_has_no_outputs_and_its_cells_are_code():
    notebook = json.loads((FOLDER / "notebook.ipynb").read_text())
    assert not any(cell.get("outputs") for cell in notebook["cells"])
    assert all(compile(cell, "cell", "exec") for cell in cells())


@pytest.mark.nightly
def test_the_notebook_runs_from_top_to_bottom(tmp_path):
    """Cell by cell in one process; of a last expression, what a notebook would show is made."""
    lines = ["shown = []"]
    for cell in cells():
        tree = ast.parse(cell)
        last = tree.body[-1]
        if isinstance(last, ast.Expr):
            tree.body[-1] = ast.parse(f"shown.append({ast.unparse(last.value)})").body[0]
        lines.append(ast.unparse(tree))
    lines.append("pages = [getattr(s, '_repr_html_', lambda: '')() or repr(s) for s in shown]")
    lines.append("assert 'data:image/png' in pages[0] and '<table' in pages[0], pages")
    lines.append("import ray")
    lines.append("assert not ray.is_initialized()")
    lines.append("print(len(pages), 'shown')")
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(FOLDER.parents[1])},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith("6 shown")
    assert (tmp_path / "runs/notebook/report.html").exists()
    assert (tmp_path / "runs/photographs.yaml").exists()
