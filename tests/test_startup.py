"""What is said at once: help, and what is wrong in a study, without a heavy import."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import autoaug_ray
from autoaug_ray.commands import main, quickstart
from autoaug_ray.errors import RunError, StorageError
from autoaug_ray.report import track, wandb
from autoaug_ray.store.files import save_state

ROOT = Path(__file__).parents[1]
WORDS = (
    "run",
    "calibrate",
    "init",
    "pilot",
    "report",
    "export",
    "methods",
    "models",
    "schema",
    "bank",
)
HEAVY = {
    "torch", "torchvision", "kornia", "ray", "diffusers", "transformers", "accelerate", "scipy",
    "matplotlib", "plotly", "pandas", "wandb", "optuna",
    "sentence_transformers", "datasets", "numpy", "pyarrow", "PIL",
}  # fmt: skip
ASK = """
import json, sys
from autoaug_ray.commands import main
status = main(json.loads(sys.argv[1]))
loaded = sorted({name.split(".")[0] for name in sys.modules})
print(json.dumps([status, loaded]), file=sys.stderr)
"""


def run(*arguments, cwd=None):
    """(exit status, heavy libraries that it imported, stdout, stderr)."""
    done = subprocess.run(
        [sys.executable, "-c", ASK, json.dumps([str(a) for a in arguments])],
        capture_output=True, text=True, cwd=cwd, check=True,
    )  # fmt: skip
    error, _, last = done.stderr.rstrip("\n").rpartition("\n")
    status, loaded = json.loads(last)
    return status, HEAVY & set(loaded), done.stdout, error


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["-h"], ["--version"], *([word, "--help"] for word in WORDS),
     ["x.yaml", "--help"], *(["bank", verb, "--help"] for verb in ("ls", "sheet", "export"))],
    ids=" ".join,
)  # fmt: skip
def test_help_imports_nothing_heavy(arguments):
    status, heavy, out, error = run(*arguments)
    assert (status, heavy, error) == (0, set(), "") and out


def test_a_test_of_imports_sees_torch(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text("dataset: {name: fashion-mnist-mini}\nmethods: {none: {flip: 1}}\n")
    status, heavy, _, error = run(path)
    assert status == 2 and "torch" in heavy and "ray" not in heavy
    assert error.startswith("error: methods.none.flip: unknown key")


LOAD = """
import json, sys
import torch
before = {name.split(".")[0] for name in sys.modules}
from autoaug_ray import load_policy
policy = load_policy(sys.argv[1])
policy(torch.rand(2, 1, 28, 28))
print(json.dumps(sorted({name.split(".")[0] for name in sys.modules} - before)))
"""


def test_a_policy_loads_and_warps_with_torch_and_pydantic_alone(tmp_path):
    from autoaug_ray import policy
    from autoaug_ray.methods.base import Task
    from autoaug_ray.methods.bilevel import Bilevel

    method, task = Bilevel(), Task(1, 28, 28, (5, 5))
    state = policy.tensors(method.start(task, 0, torch.device("cpu")).state_dict())
    saved = {"method": method.model_dump_json(), "shape": task.plain(), "state": state}
    save_state(tmp_path / "policy.pt", saved)
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path / "policy.pt")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    loaded = set(json.loads(done.stdout))
    own = set(sys.stdlib_module_names) | {"autoaug_ray", "torch", "triton", "sympy", "mpmath"}
    pydantics = {"pydantic", "pydantic_core", "annotated_types", "typing_inspection"}
    assert {name for name in loaded - own if not name.startswith("_")} == pydantics


FINE = "dataset: {name: fashion-mnist-mini}\n"
METHODS = "methods: {none: {}, bilevel: {}}\n"
WRONG = {
    None: "cannot be read",
    "dataset: [": "is not valid YAML: line 1",
    FINE + METHODS + METHODS: 'line 3, column 1: found duplicate key "methods"',
    "- 1": "must hold a mapping",
    FINE: "methods must map at least one label",
    FINE + METHODS + "epochs: 3": "epochs: unknown key",
    FINE + METHODS + "seeds: 0": "seeds must be between 1 and 100000",
    METHODS + "dataset: {name: fashion}": "dataset.name: unknown dataset",
    METHODS + "dataset: {name: bach, image_sise: 3}": "dataset.image_sise: unknown key (did you",
    FINE + METHODS + "model: resnet9": "model.name: unknown classifier",
    FINE + METHODS + "train: {epochs: 0}": "train.epochs: input should be greater",
    FINE + METHODS + "generate: {calls: many}": "generate.calls: input should be a valid integer",
    FINE + "methods: {none: {}, bilvel: {}}":
        "methods.bilvel.method: unknown method 'bilvel' (did you mean bilevel?)",
}  # fmt: skip


@pytest.mark.parametrize("text", WRONG, ids=range(len(WRONG)))
@pytest.mark.parametrize(
    "word", [(), ("run",), ("calibrate",), ("pilot",)], ids=lambda word: " ".join(word) or "no word"
)
def test_what_is_wrong_in_a_study_is_said_without_a_heavy_import(text, word, tmp_path):
    path = tmp_path / "study.yaml"
    if text is not None:
        path.write_text(text)
    status, heavy, out, error = run(*word, path, cwd=tmp_path)
    assert (status, heavy, out) == (2, set(), "")
    assert error.startswith("error: ") and WRONG[text] in error and "\n" not in error
    assert not (tmp_path / "runs").exists()


def test_help_lists_the_words(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    listed = out.split("Commands:")[1].split("\n")
    assert [line.split()[0] for line in listed if line.strip()] == list(WORDS)
    assert "Install completion" in out and not set("╭│─") & set(out)


def test_a_line_of_nothing_is_help_and_a_wrong_word_is_told_the_next(capsys):
    assert main([]) == 0
    assert "Commands:" in capsys.readouterr().out
    assert main(["inti", "photos"]) == 2
    assert "'inti' is neither a word (did you mean init?) nor a study" in capsys.readouterr().err


def test_the_version_is_the_package_s(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"autoaug-ray {autoaug_ray.__version__}\n"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--dryrun"], "No such option"),
        (["x.yaml", "--seeds", "two"], "Invalid value for '--seeds'"),
        (["--wandb", "sometimes"], "Invalid value for '--wandb'"),
        (["report"], "Missing argument"),
        (["bank"], "Missing command"),
        (["bank", "look"], "No such command 'look'"),
        (["bank", "sheet", "abc"], "Missing option '--out'"),
        (["init", "x", "--flip", "diagonal"], "Invalid value for '--flip'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_line_is_said_in_plain_text(arguments, message, capsys):
    assert main(arguments) == 2
    out, error = capsys.readouterr()
    last = error.strip().splitlines()[-1]
    assert not out and last.startswith("Error: ") and message in last
    assert not set("╭│─") & set(error)


def options_of(monkeypatch, *arguments):
    """What `run` hands to its work."""
    from autoaug_ray import config
    from autoaug_ray.commands import run

    called = []
    monkeypatch.setattr(config, "load", lambda path, **settings: [path, settings])
    monkeypatch.setattr(run, "run_studies", lambda studies, **o: called.append((studies, o)) or 1)
    monkeypatch.setattr(run, "smoke_studies", lambda studies: called.append((studies, None)) or 0)
    status = main(arguments)
    ((studies, options),) = called
    return status, studies, options


DEFAULTS = {
    "out": None, "bank": None, "resume": False, "dry_run": False, "track": None, "wandb": None,
    "named": False,
}  # fmt: skip


@pytest.mark.parametrize("word", [(), ("run",)])
def test_every_option_arrives(word, monkeypatch):
    status, studies, options = options_of(
        monkeypatch, *word, "a.yaml", "--set", "x=1", "--resume", "b.yaml", "--set", "y.z=[2, 3]",
        "--seeds", "5", "--dry-run", "--wandb", "off", "--bank", "B", "--storage", "s3://b/x",
        "--track", "mlflow",
    )  # fmt: skip
    settings = {"changes": ["x=1", "y.z=[2, 3]"], "seeds": 5}
    assert status == 1 and studies == [[Path("a.yaml"), settings], [Path("b.yaml"), settings]]
    assert options == {
        "out": "s3://b/x", "bank": "B", "resume": True, "dry_run": True, "track": "mlflow",
        "wandb": "off", "named": False,
    }  # fmt: skip


def test_a_line_without_a_study_is_the_quick_start(monkeypatch):
    ((path, settings),) = options_of(monkeypatch, "run")[1]
    assert path == quickstart() == ROOT / "search_spaces/quickstart.yaml"
    assert settings == {"changes": (), "seeds": None}
    assert options_of(monkeypatch, "--out", "o")[2] == DEFAULTS | {"out": "o"}
    assert options_of(monkeypatch, "--smoke")[::2] == (0, None)


def test_a_line_of_calibrate_is_of_studies(monkeypatch):
    from autoaug_ray import config
    from autoaug_ray.commands import run

    called = []
    monkeypatch.setattr(config, "load", lambda path, **settings: [path, settings])
    monkeypatch.setattr(
        run, "calibrate_studies", lambda studies, named: called.append(studies) or 0
    )
    assert main(["calibrate"]) == 0
    assert main(["calibrate", "a.yaml", "--seeds", "5", "--set", "x=1"]) == 0
    nothing, given = {"changes": (), "seeds": None}, {"changes": ["x=1"], "seeds": 5}
    assert called == [[[quickstart(), nothing]], [[Path("a.yaml"), given]]]


def test_what_trackers_can_be_asked_for_is_what_they_know(monkeypatch):
    for mode in wandb.MODES:
        assert options_of(monkeypatch, "--wandb", mode)[2]["wandb"] == mode
    for name in track.SERVICES:
        assert options_of(monkeypatch, "--track", name)[2]["track"] == name


@pytest.mark.parametrize("line", [["run_all.py"], ["-m", "autoaug_ray"]], ids=" ".join)
def test_every_door_leads_to_the_same_words(line):
    done = subprocess.run(
        [sys.executable, *line, "nowhere.yaml"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: nowhere.yaml cannot be read")


@pytest.mark.nightly
def test_a_wheel_runs_the_quick_start_from_anywhere(tmp_path):
    """Built from the files alone, without git, and installed where nothing else is."""
    source, wheels, target, cwd = (
        tmp_path / name for name in ("source", "wheels", "target", "cwd")
    )
    cwd.mkdir()
    for name in ("autoaug_ray", "search_spaces"):
        hidden = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=hidden)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)

    def call(*line):
        variables = os.environ | {"PYTHONPATH": str(target)}
        done = subprocess.run(
            [sys.executable, *map(str, line)], cwd=cwd, env=variables, capture_output=True,
            text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    alone = ("--no-deps", "--no-build-isolation", "--disable-pip-version-check")
    call("-m", "pip", "wheel", *alone, "--wheel-dir", wheels, source)
    (wheel,) = wheels.iterdir()
    call("-m", "pip", "install", *alone, "--no-index", "--target", target, wheel)
    asked = "from autoaug_ray.commands import quickstart; print(quickstart())"
    study = target / "autoaug_ray/search_spaces/quickstart.yaml"
    assert call("-c", asked).strip() == str(study)
    assert study.read_bytes() == (ROOT / "search_spaces/quickstart.yaml").read_bytes()
    assert "1 passed, 0 failed" in call("-m", "autoaug_ray", "--smoke")


@pytest.mark.parametrize(
    "word, work, line",
    [
        ("run", "run.run_studies", "interrupted; the same command with --resume goes on."),
        ("pilot", "pilot.run_pilots", "interrupted; the same command goes on."),
        ("report", "report.report_folder", "interrupted"),
    ],
)
def test_an_interruption_says_how_to_go_on(word, work, line, monkeypatch, capsys):
    from autoaug_ray import config

    def interrupt(*_, **options):
        raise KeyboardInterrupt

    module, function = work.split(".")
    monkeypatch.setattr(config, "load", lambda path, **settings: [])
    monkeypatch.setattr(f"autoaug_ray.commands.{module}.{function}", interrupt)
    assert main([word, "a.yaml"]) == 130
    assert capsys.readouterr().err == f"{line}\n"


def test_a_full_disk_says_how_to_go_on_and_a_failed_run_only_why(monkeypatch, capsys):
    from autoaug_ray.commands import report, run

    monkeypatch.setattr("autoaug_ray.config.load", lambda path, **settings: [])

    def fails_with(error):
        def work(*_, **options):
            raise error

        return work

    monkeypatch.setattr(run, "run_studies", fails_with(StorageError("x is full.")))
    assert main(["a.yaml"]) == 1
    goes_on = "the same command with --resume goes on."
    assert capsys.readouterr().err == f"error: x is full; {goes_on}\n"
    monkeypatch.setattr(report, "report_folder", fails_with(StorageError("x is full.")))
    assert main(["report", "x"]) == 1
    assert capsys.readouterr().err == "error: x is full\n"
    monkeypatch.setattr(run, "run_studies", fails_with(RunError("no gradient.")))
    assert main(["a.yaml"]) == 1
    assert capsys.readouterr().err == "error: no gradient.\n"
