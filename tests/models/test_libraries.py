"""Networks of transformers and timm: what they see, what they start from, and hypergradients."""

import sys

import pytest
import torch
from look_ahead import meta_loss
from pydantic import ValidationError
from torch.func import functional_call
from torch.nn import functional as F

from autoaug_ray import models
from autoaug_ray.errors import UserError
from autoaug_ray.learner import Learner
from autoaug_ray.maths import alignment, hypergradient
from autoaug_ray.models import build
from autoaug_ray.settings.classifier import Classifier
from autoaug_ray.settings.training import Training

GREY = torch.tensor([0.3]), torch.tensor([0.2])
CLASSES = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folders of small networks with random weights, as `save_pretrained` leaves them."""
    import transformers as hf

    place = tmp_path_factory.mktemp("networks")
    small = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16,
        "patch_size": 8, "num_labels": 5,
    }  # fmt: skip
    stages = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "image_size": 16}
    torch.manual_seed(0)
    for name, network in {
        "vit": hf.ViTForImageClassification(hf.ViTConfig(**small, intermediate_size=64)),
        "dinov2": hf.Dinov2ForImageClassification(hf.Dinov2Config(**small, mlp_ratio=2)),
        "convnext": hf.ConvNextForImageClassification(hf.ConvNextConfig(**stages)),
    }.items():
        for p in network.parameters():  # small initial weights would have no second derivative
            p.data += 0.2 * torch.randn_like(p)
        network.save_pretrained(place / name)
    processor = hf.ViTImageProcessor(
        size={"height": 16, "width": 16}, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.3, 0.4]
    )
    processor.save_pretrained(place / "vit")
    return place


class Problem:
    """A network in float64, images that two numbers theta make brighter, and a meta batch."""

    def __init__(self, folder, **training):
        model = build(Classifier(name=f"hf:{folder}"), CLASSES, *GREY, seed=0).double()
        training = Training(lr=0.2, momentum=0.0, weight_decay=0.01, batch_size=8, **training)
        self.learner = Learner(model, training, total_steps=1, noise=torch.Generator())
        noise = torch.Generator().manual_seed(0)
        x = torch.rand(2, 8, 1, 12, 12, generator=noise, dtype=torch.float64)
        self.x, self.meta = 0.5 * x
        self.y, self.meta_y = torch.arange(8) % CLASSES, torch.arange(8).flip(0) % CLASSES
        self.theta = torch.tensor([1.1, 0.1], dtype=torch.float64, requires_grad=True)

    def images(self, part=slice(None), theta=None):
        theta = self.theta if theta is None else theta
        return theta[0] * self.x[part] + theta[1] * self.x[part].square()

    @property
    def w(self):
        return {k: p.detach().requires_grad_() for k, p in self.learner.weights().items()}

    def gradient(self, images, labels):
        w = self.w
        loss = F.cross_entropy(functional_call(self.learner.model, w, (images,)), labels)
        grads = torch.autograd.grad(loss, list(w.values()), materialize_grads=True)
        return dict(zip(w, grads, strict=True))

    def differences(self, f, epsilon=1e-5):
        """Central ones of f(theta)."""
        steps = epsilon * torch.eye(2, dtype=torch.float64)
        theta = self.theta.detach()
        return torch.stack([(f(theta + s) - f(theta - s)) / (2 * epsilon) for s in steps])


def same(h, differences):
    assert float(differences.abs().max()) > 1e-4, "nothing was tested"
    torch.testing.assert_close(h, differences, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("name", ["vit", "dinov2", "convnext"])
def test_the_hypergradient_equals_finite_differences(folder, name, accumulate):
    """Attention and all: a mask token, which DINOv2 has, takes no part in the loss."""
    p = Problem(folder / name, accumulate=accumulate)
    learner, w = p.learner, p.w
    h = hypergradient.unrolled(
        [learner.loss_at(p.images, p.y)], learner.loss_at(p.meta, p.meta_y),
        w, learner.buffers(), [p.theta], [learner.rule],
    )  # fmt: skip

    def objective(theta):
        images = p.images(theta=theta)
        return meta_loss(learner.model, w, learner.rule, images, p.y, p.meta, p.meta_y).detach()

    same(h.theta[0], p.differences(objective))
    unused = [k for k, v in h.weights.items() if not v.any()]
    assert [k.rpartition(".")[2] for k in unused] == ["mask_token"] * (name == "dinov2")


@pytest.mark.parametrize("name", ["vit", "dinov2", "convnext"])
def test_alignment_equals_finite_differences(folder, name):
    p = Problem(folder / name)
    learner = p.learner
    of_batch = learner.loss_at(p.images, p.y)
    _, v = hypergradient.value_and_gradient(learner.loss_at(p.meta, p.meta_y), p.w)
    g = p.gradient(p.images().detach(), p.y)
    d = alignment.pulled_back(learner.rule, p.w, learner.buffers(), g, v)
    there, eps = alignment.shifted(p.w, d, distance=1e-7)
    ends = [hypergradient.towards(of_batch, w, [p.theta])[1][0] for w in (there, p.w)]

    def aligned(theta):
        return alignment.inner(d, p.gradient(p.images(theta=theta), p.y)).detach()

    same((ends[0] - ends[1]) / eps, p.differences(aligned))


def test_images_are_scaled_and_normalised_as_the_processor_does(folder):
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(folder / "vit")
    images = torch.randint(256, (2, 3, 40, 24), dtype=torch.uint8)
    model = build(Classifier(name=f"hf:{folder / 'vit'}"), CLASSES, *GREY, seed=0)
    expected = processor(list(images), return_tensors="pt")["pixel_values"]
    # Theirs are scaled in whole numbers.
    torch.testing.assert_close(model[0](images / 255), expected, rtol=0, atol=1 / 255 / 0.2)
    grey = images[:, :1] / 255
    assert torch.equal(model[0](grey), model[0](grey.expand(-1, 3, -1, -1)))


def test_a_folder_without_a_processor_has_the_size_of_its_configuration(folder):
    model = build(Classifier(name=f"hf:{folder / 'dinov2'}"), CLASSES, *GREY, seed=0)
    assert model[0].size == (16, 16) and torch.equal(model[0].mean.flatten(), GREY[0])


@pytest.mark.parametrize("weights", ["pretrained", "folder", "file"])
def test_all_layers_but_the_last_have_the_weights_of_the_folder(folder, weights):
    from transformers import ViTForImageClassification

    place = folder / "vit"
    where = {"pretrained": weights, "folder": place, "file": place / "model.safetensors"}[weights]
    trained = ViTForImageClassification.from_pretrained(place).state_dict()

    def loaded(seed, classes):
        classifier = Classifier(name=f"hf:{place}", weights=str(where))
        return build(classifier, classes, *GREY, seed=seed)[1].state_dict()

    # As many classes as the folder has: its head is replaced all the same.
    one, again, other = loaded(1, 5), loaded(1, 5), loaded(2, 5)
    for k, v in trained.items():
        assert torch.equal(one[k], v) != k.startswith("classifier."), k
    assert torch.equal(one["classifier.weight"], again["classifier.weight"])
    assert not torch.equal(one["classifier.weight"], other["classifier.weight"])
    assert loaded(1, 7)["classifier.weight"].shape == (7, 32)


def test_without_weights_the_seed_alone_decides(folder):
    classifier = Classifier(name=f"hf:{folder / 'vit'}", weights=None)
    one, again, other = (build(classifier, 3, *GREY, seed=s)[1].state_dict() for s in (1, 1, 2))
    key = "vit.embeddings.cls_token"
    assert torch.equal(one[key], again[key]) and not torch.equal(one[key], other[key])


def test_what_cannot_be_had_is_said_in_a_sentence(folder, tmp_path):
    def message(name, **settings):
        with pytest.raises(UserError) as caught:
            build(Classifier(name=f"hf:{name}", **settings), 3, *GREY, seed=0)
        return str(caught.value)

    vit, convnext = folder / "vit", folder / "convnext"
    assert message(tmp_path / "no") == f"model.name: there is no folder {tmp_path / 'no'}."
    assert message(tmp_path).startswith(f"model.name: cannot load hf:{tmp_path} (")
    assert f"{convnext} is no state dict of hf:{vit}" in message(vit, weights=str(convnext))
    nothing = message(vit, weights=str(tmp_path / "no.pt"))
    assert nothing.startswith(f"model.weights: {tmp_path / 'no.pt'} does not exist; it must be pre")
    (tmp_path / "text.safetensors").write_text("no weights")
    assert "cannot load" in message(vit, weights=str(tmp_path / "text.safetensors"))


@pytest.mark.parametrize(
    "name, meant",
    [
        ("vit_b_16", "torchvision:vit_b_16"),
        ("torchvision:vit_b16", "torchvision:vit_b_16"),
        ("facebook/dinov2-small", "hf:facebook/dinov2-small"),
        ("resnet9", "resnet8"),
    ],
)
def test_a_name_without_its_library_is_refused_with_the_whole_one(name, meant):
    with pytest.raises(ValidationError, match=rf"unknown classifier \(did you mean {meant}\?\)"):
        Classifier(name=name)


@pytest.mark.parametrize(
    "name, weights, own",
    [("timm:resnet18", "imagenet", "pretrained"), ("resnet50", "pretrained", "imagenet")],
)
def test_each_library_has_its_word_for_its_own_weights(name, weights, own):
    with pytest.raises(ValidationError, match=f"of {name} are called {own}, not {weights}"):
        Classifier(name=name, weights=weights)


def test_images_that_do_not_fit_are_refused_before_any_work(monkeypatch):
    with pytest.raises(UserError, match=r"squeezenet1_1 cannot take images of 9 x 9 pixels \(.*\)"):
        models.check(Classifier(name="torchvision:squeezenet1_1"), 3, (3, 9, 9))
    models.check(Classifier(name="torchvision:squeezenet1_1"), 3, (1, 32, 32))
    monkeypatch.setitem(models.CLASSIFIERS, "cnn", lambda *_: torch.nn.Flatten())
    with pytest.raises(UserError, match=r"one logit for each of 3 classes .* but \[2, 81\]"):
        models.check(Classifier(), 3, (1, 9, 9))


def test_without_timm_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"timm:resnet18 needs .*pip install 'autoaug_ray\[timm\]'"):
        build(Classifier(name="timm:resnet18"), 3, *GREY, seed=0)


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_a_network_of_timm_sees_and_starts_from_what_timm_says(kind, tmp_path):
    timm = pytest.importorskip("timm")
    from safetensors.torch import save_file

    torch.manual_seed(1)
    network = timm.create_model("test_vit")
    path = tmp_path / f"weights.{kind}"
    (torch.save if kind == "pt" else save_file)(network.state_dict(), path)
    model = build(Classifier(name="timm:test_vit", weights=str(path)), 3, *GREY, seed=0).eval()
    for k, v in network.state_dict().items():
        assert torch.equal(model[1].state_dict()[k], v) != k.startswith("head."), k
    config = timm.data.resolve_model_data_config(network)
    images = torch.rand(2, 1, 40, 40)
    scaled = F.interpolate(images, config["input_size"][1:], mode="bicubic", antialias=True)
    mean, std = (torch.tensor(config[k]).view(1, 3, 1, 1) for k in ("mean", "std"))
    network.reset_classifier(3)
    network.head.load_state_dict(model[1].head.state_dict())
    torch.testing.assert_close(model(images), network.eval()((scaled - mean) / std))
    with pytest.raises(UserError, match=r"timm has no test_vitt \(did you mean timm:test_vit\?\)"):
        build(Classifier(name="timm:test_vitt"), 3, *GREY, seed=0)
