"""What a study, a download, a shared folder or a weights file of somebody else can do here."""

import ast
import json
import os
import pickle
import struct
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from attacks import SECRETS, Attack
from hand import Hand
from PIL import Image
from planted_bank import make_plan, make_pool
from torchvision.models import resnet18

from autoaug_ray import config, data
from autoaug_ray.data import files
from autoaug_ray.data.standins.natural import WRITERS as NATURAL
from autoaug_ray.data.standins.objects import WRITERS as OBJECTS
from autoaug_ray.errors import UserError
from autoaug_ray.generate import captions, pipeline, weights
from autoaug_ray.generate.bank import Bank
from autoaug_ray.generate.bank_export import export_imagefolder, export_webdataset
from autoaug_ray.generate.settings import Generation
from autoaug_ray.methods.replay import Replay
from autoaug_ray.models import start_from
from autoaug_ray.policy import load_policy
from autoaug_ray.report.write import write
from autoaug_ray.store.folder import Folder

ROOT = Path(__file__).parent.parent
OUTSIDE = ["../../x", "..", "/etc/x", "a/b", "a\\b", "."]
STUDY = """
dataset: {name: fashion-mnist-mini, train_size: 80, test_size: 40}
model: {name: cnn, width: 4}
train: {epochs: 1, batch_size: 32}
seeds: 1
"""


def read(dataset):
    return data.load(dataset, val_fraction=None, seed=0, device=torch.device("cpu"))


@pytest.fixture
def sign(tmp_path):
    """A folder that is there if an attack got through."""
    sign = tmp_path / "owned"
    pickle.loads(pickle.dumps(Attack(sign)))
    assert sign.is_dir()  # the attack is a real one
    sign.rmdir()
    yield sign
    assert not sign.exists()


# Code in files


def test_a_checkpoint_runs_nothing(sign, tmp_path):
    folder = Folder(tmp_path)
    folder.checkpoints.mkdir()
    torch.save({"epoch": Attack(sign)}, folder.checkpoints / "key.pt")
    with pytest.raises(UserError, match="key.pt cannot be read .Weights only load failed"):
        folder.load_checkpoint("key")


def test_a_policy_runs_nothing(sign, tmp_path):
    path = tmp_path / "policy.pt"
    torch.save({"method": Attack(sign)}, path)
    with pytest.raises(UserError, match="is not a policy of autoaug_ray"):
        load_policy(path)
    with pytest.raises((UserError, pickle.UnpicklingError)):
        Replay(name="replay", of="x", policy=str(path)).init(None, 0, torch.device("cpu"))


def test_trained_weights_run_nothing(sign, tmp_path, tiny):
    torch.save({"conv1.weight": Attack(sign)}, tmp_path / "w.pt")
    model = {"name": "torchvision:resnet18", "weights": str(tmp_path / "w.pt")}
    with pytest.raises(UserError, match="cannot load .*it holds more than tensors, or none"):
        start_from(resnet18(weights=None), tiny({}, model=model).model)


@pytest.mark.parametrize("name", ["test_batch", "batches.meta"])
def test_a_cifar_batch_runs_nothing(sign, tmp_path, name):
    NATURAL["cifar10"](tmp_path, 2, 0)
    (path,) = tmp_path.rglob(name)
    path.write_bytes(pickle.dumps({"data": Attack(sign), "labels": [0], "label_names": []}))
    with pytest.raises(UserError, match="it asks for posix.mkdir"):
        read(data.Dataset(name="cifar10", root=str(tmp_path)))


def test_an_array_of_objects_runs_nothing(sign, tmp_path):
    path = tmp_path / "own.npz"
    np.savez(path, train_images=np.array([Attack(sign)], dtype=object))
    with pytest.raises(UserError, match="allow_pickle=False"):
        read(data.Dataset(name="npz", root=str(path)))


def test_a_generator_brings_no_code_and_no_pickle_that_runs(sign, tmp_path):
    """Weights as a .bin are read without what they would run; classes in the folder are refused."""
    shipped = Path(weights.resolve("embedded", "blip"))
    evil = tmp_path / "evil"
    evil.mkdir()
    for path in shipped.iterdir():
        if path.suffix != ".safetensors":
            (evil / path.name).write_bytes(path.read_bytes())
    torch.save({"x": Attack(sign)}, evil / "pytorch_model.bin")
    with pytest.raises((UserError, pickle.UnpicklingError)):
        captions._load(str(evil), torch.float32)
    (evil / "mine.py").write_text(f"import os\nos.mkdir({str(sign)!r})\n")
    about = json.loads((evil / "config.json").read_text())
    about |= {"model_type": "mine", "auto_map": {
        "AutoConfig": "mine.Config", "AutoModelForImageTextToText": "mine.Model"}}  # fmt: skip
    (evil / "config.json").write_text(json.dumps(about))
    with pytest.raises(UserError):
        captions._load(str(evil), torch.float32)


def test_a_diffusion_folder_brings_no_code(sign, tmp_path):
    evil = tmp_path / "evil"
    (evil / "unet").mkdir(parents=True)
    index = json.loads(
        (Path(weights.resolve("embedded", "stable-diffusion")) / "model_index.json").read_text()
    )
    (evil / "model_index.json").write_text(json.dumps({**index, "unet": ["mine", "Net"]}))
    (evil / "unet/mine.py").write_text(f"import os\nos.mkdir({str(sign)!r})\nclass Net: pass\n")
    with pytest.raises(UserError):
        pipeline.load(Generation(model=str(evil)), torch.device("cpu"))


def test_a_study_runs_nothing(sign, tmp_path):
    path = tmp_path / "evil.yaml"
    attack = f"!!python/object/apply:os.mkdir [{str(sign)!r}]"
    path.write_text(STUDY + f"methods: {{none: {attack}}}\n")
    with pytest.raises(UserError):
        config.load(path)
    path.write_text(STUDY + "methods: {none: {}}\n")
    with pytest.raises(UserError):
        config.load(path, changes=[f"train.epochs={attack}"])


FORBIDDEN = {
    "eval", "exec", "os.system", "os.popen", "pickle.load", "pickle.loads", "cloudpickle.load",
    "cloudpickle.loads", "joblib.load", "pd.read_pickle", "marshal.loads", "yaml.unsafe_load",
    "yaml.full_load", "Tuner.restore", "tune.Tuner.restore", "shutil.unpack_archive",
}  # fmt: skip
LOADERS = {"yaml.SafeLoader"}


def offences(source):
    for call in ast.walk(ast.parse(source)):
        if not isinstance(call, ast.Call):
            continue
        name = ast.unparse(call.func)
        given = {k.arg: ast.unparse(k.value) for k in call.keywords}
        wrong = (
            name in FORBIDDEN
            or name == "torch.load" and given.get("weights_only") != "True"
            or name.endswith("get_state_dict") and "check_hash" in given
            and given.get("weights_only") != "True"
            or name in ("np.load", "numpy.load") and given.get("allow_pickle") != "False"
            or name == "yaml.load" and {ast.unparse(a) for a in call.args[1:]}.isdisjoint(LOADERS)
            or name.split(".")[-1] == "YAML" and given.get("typ") != "'safe'"
            or given.get("shell") == "True" or given.get("trust_remote_code", "False") != "False"
            or name.startswith("Auto") and name.endswith(".from_pretrained")
            and given.get("trust_remote_code") != "False"
            or name.endswith((".extractall", ".extract")) and given.get("filter") != "'data'"
        )  # fmt: skip
        if wrong:
            yield f"line {call.lineno}: {ast.unparse(call)}"


def test_nothing_here_reads_files_in_a_way_that_runs_them():
    sources = [*sorted((ROOT / "autoaug_ray").rglob("*.py")), ROOT / "run_all.py"]
    assert len(sources) > 90
    found = {str(path.relative_to(ROOT)): [*offences(path.read_text())] for path in sources}
    # own_code.py runs the files that a study names as its own methods
    own = found.pop("autoaug_ray/own_code.py")
    assert [line.partition(": ")[2] for line in own] == [
        "exec(compile(text, path, 'exec'), module.__dict__)"
    ]
    assert {path: lines for path, lines in found.items() if lines} == {}


@pytest.mark.parametrize("code", [
    "torch.load(p)", "torch.load(p, weights_only=False)", "np.load(p)", "yaml.load(t, yaml.Loader)",
    "YAML().load(t)", "YAML(typ='unsafe')",
    "pickle.load(f)", "eval(t)", "run(c, shell=True)", "tar.extractall(p)", "Tuner.restore(p)",
    "AutoModel.from_pretrained(m)", "x.from_pretrained(m, trust_remote_code=True)",
])  # fmt: skip
def test_the_law_above_can_be_broken(code):
    assert list(offences(code))


# Places


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_name_in_a_study_leaves_its_folder(tmp_path, name, tiny):
    path = tmp_path / "own.yaml"
    for tree in (
        {"methods": {"none": {}, name: {"method": "predefined"}}},
        {"methods": {"none": {}}, "cases": {name: {}, "b": {}}},
        {"methods": {"none": {}}, "name": name},
    ):
        path.write_text(STUDY + yaml.safe_dump(tree))
        with pytest.raises(UserError):
            config.load(path)
    run = json.loads(
        tiny({}).run(tiny({}).entry("none"), "final", seed=0, choices={}).model_dump_json()
    )
    with pytest.raises(ValueError, match="label"):
        config.Run.model_validate_json(json.dumps(run | {"label": name}))


@pytest.mark.parametrize("name", ["..", "../../x", "/etc/x", "...", "."])
def test_no_class_leaves_the_folder_that_a_bank_is_exported_to(tmp_path, name):
    bank = Bank(tmp_path / "bank")
    key, _ = make_plan(bank, make_pool())
    path = bank.plans_folder / f"{key}-sources.parquet"
    table = pq.read_table(path)
    classes = pa.array([name] * 2 + ["cat"] * 2)
    pq.write_table(
        table.set_column(table.column_names.index("class_name"), "class_name", classes), path
    )
    out = tmp_path / "a/b/out"
    assert export_imagefolder(bank, key, out) == 4
    written = [p for p in (tmp_path / "a").rglob("*") if p.is_file()]
    assert len({p.parent for p in written}) == 2 and {p.parent.parent for p in written} == {out}


def test_no_class_is_in_the_name_of_a_member_of_an_exported_tar(tmp_path):
    bank = Bank(tmp_path / "bank")
    key, _ = make_plan(bank, make_pool())  # of a class with a slash
    export_webdataset(bank, key, tmp_path / "tars")
    listed = subprocess.check_output(["tar", "tf", tmp_path / "tars/000000.tar"], text=True)
    assert len(listed.split()) == 12
    assert not any("/" in line or line.startswith(".") for line in listed.split())


def test_no_plan_is_read_from_outside_of_a_bank(tmp_path):
    bank, other = Bank(tmp_path / "bank"), Bank(tmp_path / "other")
    make_plan(bank, make_pool())
    key, _ = make_plan(other, make_pool())
    for name in (f"../../other/plans/{key}", str(other.root / "plans" / key)):
        with pytest.raises(UserError, match="no plan"):
            bank.read_plan(name)


def test_no_listing_names_an_image_outside_of_its_dataset(tmp_path):
    root = tmp_path / "coco"
    OBJECTS["coco2017"](root, 4, 0)
    path = root / "annotations/instances_train2017.json"
    content = json.loads(path.read_text())
    for image in content["images"]:
        image["file_name"] = f"../../secret/{image['file_name']}"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="no place inside of"):
        read(data.Dataset(name="coco2017", root=str(root), image_size=32))
    for place in ("../x", "a/../../x", "/etc/x"):
        with pytest.raises(UserError, match="no place inside of"):
            files.inside(root, place)
    assert files.inside(root, "a/b..c") == root / "a/b..c"


def test_no_row_of_a_hub_table_names_an_image_outside_of_its_folder(tmp_path):
    secret = tmp_path / "secret.png"
    Image.new("RGB", (8, 8)).save(secret)
    features = datasets.Features(
        {"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=["a", "b"])}
    )
    rows = {"image": [{"path": str(secret), "bytes": None}] * 4, "label": [0, 1, 0, 1]}
    root = tmp_path / "table"
    root.mkdir()
    for part in ("train", "test"):
        table = datasets.Dataset.from_dict(rows, features=features)
        pq.write_table(
            table.cast_column("image", datasets.Image()).data.table, root / f"{part}.parquet"
        )
    with pytest.raises(UserError, match="not in that folder"):
        read(data.Dataset(name="hub", root=str(root)))


# Pages and pictures


def test_what_a_study_is_called_is_no_markup(tmp_path):
    hand = Hand(tmp_path)
    hand.finals("none", 0.5, 0.6)
    markup = "<script>alert(1)</script>"
    study = hand.study.model_copy(update={"name": markup})
    page = write(replace(hand.results(*[markup] * 10), study=study)).read_text()
    assert markup not in page and "&lt;script&gt;" in page


def test_a_picture_that_unpacks_to_gigabytes_is_refused(tmp_path):
    path = tmp_path / "bomb.png"
    Image.new("1", (1, 1)).save(path)
    head = b"IHDR" + struct.pack(">II", 20_000, 20_000) + path.read_bytes()[24:29]
    whole = path.read_bytes()
    path.write_bytes(whole[:12] + head + struct.pack(">I", zlib.crc32(head)) + whole[33:])
    with pytest.raises(UserError, match="decompression bomb"):
        files.read_image(path, "bomb.png", 32, 3, "stretch")


# A real study


@pytest.mark.ray
def test_a_study_tells_no_secret_and_reads_no_pickle_of_its_folder(real_study):
    assert not real_study.sign.exists()
    kept = {p: p.read_bytes() for p in real_study.root.parent.rglob("*") if p.is_file()}
    assert any(p.name == "report.html" for p in kept) and any(p.suffix == ".parquet" for p in kept)
    for key in SECRETS.values():
        assert key not in real_study.done.stdout + real_study.done.stderr
        assert [p for p, content in kept.items() if key.encode() in content] == []
    for path in (p for p in kept if p.suffix == ".parquet"):  # whose pages may be compressed
        assert not any(key in str(pq.read_table(path).to_pylist()) for key in SECRETS.values())


LISTEN = """
import json, os, psutil, time
from autoaug_ray.schedule import cluster
cluster.join(1)
time.sleep(1)
own = psutil.Process().children(recursive=True)
found = [[p.name(), c.laddr.ip, c.laddr.port] for p in own for c in p.net_connections("tcp")
         if c.status == "LISTEN"]
import ray
node = ray._private.worker._global_node
folder = os.stat(node.get_session_dir_path()).st_mode & 0o777
print(json.dumps([found, os.environ.get("RAY_AUTH_MODE"), node.webui_url, folder]))
"""


@pytest.mark.ray
def test_a_cluster_of_ours_asks_for_a_token_and_has_no_dashboard(tmp_path):
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {
        "HOME": str(tmp_path)
    }
    out = subprocess.run(
        [sys.executable, "-c", LISTEN], capture_output=True, text=True, timeout=100, env=env
    )
    assert out.returncode == 0, out.stderr
    found, mode, dashboard, folder = json.loads(out.stdout.splitlines()[-1])
    assert found, "nothing listens: this test looks at the wrong processes"
    assert mode == "token" and not dashboard  # Ray 2.60 listens on every interface
    token = tmp_path / ".ray" / "auth_token"
    assert token.stat().st_mode & 0o777 == 0o600, "other users of the machine could read it"
    assert folder == 0o700, "a log in it keeps what Tune hands to workers, AWS's keys too"
    assert not any("Dashboard" in name for name, *_ in found)
