import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F
from torchvision import models as torchvision_models

from autoaug_ray.errors import UserError
from autoaug_ray.learner import Learner
from autoaug_ray.models import CLASSIFIERS, build, parameter_count
from autoaug_ray.settings.classifier import CLASSIFIER_NAMES, Classifier
from autoaug_ray.settings.training import Training

GREY = torch.tensor([0.3]), torch.tensor([0.2])
RGB = torch.full((3,), 0.4), torch.full((3,), 0.2)


@pytest.mark.parametrize("name", sorted(set(CLASSIFIERS) - {"wrn-28-10", "resnet50", "resnet56"}))
@pytest.mark.parametrize("statistics", [GREY, RGB], ids=["grey", "rgb"])
def test_logits_for_every_classifier(name, statistics):
    model = build(Classifier(name=name), 7, *statistics, seed=0).eval()
    assert model(torch.rand(2, len(statistics[0]), 32, 32)).shape == (2, 7)


def test_a_study_can_name_every_classifier_that_can_be_built():
    assert tuple(CLASSIFIERS) == CLASSIFIER_NAMES


def test_parameter_counts_are_the_papers():
    def count(name, classes):
        return parameter_count(build(Classifier(name=name), classes, *RGB, seed=0))

    # torchvision's own, less the 7x7 stem and plus a 3x3 one.
    reference = parameter_count(torchvision_models.resnet18(num_classes=10))
    assert count("resnet18", 10) == reference - 64 * 3 * 49 + 64 * 3 * 9
    assert count("resnet50", 1000) == parameter_count(torchvision_models.resnet50())
    assert round(count("wrn-28-10", 10) / 1e6, 1) == 36.5
    # Nine convolutions, layer by layer: 3x3 from 3 to 96 to 192 channels, and two 1x1.
    convolutions = 9 * (3 * 96 + 2 * 96 * 96 + 96 * 192 + 3 * 192 * 192) + 2 * 192 * 192
    norms, head = 2 * (3 * 96 + 6 * 192), 192 * 10 + 10
    assert count("badgan", 10) == convolutions + norms + head


def test_initial_weights_depend_on_the_seed_alone():
    a = build(Classifier(), 3, *GREY, seed=1)
    torch.rand(5)
    b, c = (build(Classifier(), 3, *GREY, seed=s) for s in (1, 2))
    x = torch.rand(2, 1, 28, 28)
    assert torch.equal(a.eval()(x), b.eval()(x)) and not torch.equal(a(x), c.eval()(x))


def test_any_torchvision_classifier_by_name_also_on_grey_images():
    model = build(Classifier(name="torchvision:squeezenet1_1"), 5, *GREY, seed=0).eval()
    assert model(torch.rand(2, 1, 64, 64)).shape == (2, 5)
    with pytest.raises(ValidationError, match="unknown classifier"):
        Classifier(name="torchvision:nothing")


def test_parameter_counts_of_the_cifar_resnets():
    """He et al. 2016, table 6, in millions."""
    for name, millions in (("resnet20", 0.27), ("resnet32", 0.46), ("resnet56", 0.85)):
        model = build(Classifier(name=name), 10, *RGB, seed=0)
        assert abs(parameter_count(model) / 1e6 - millions) < 0.01, name


@pytest.fixture
def saved(tmp_path):
    """A state dict of torchvision's network, as anyone would save it."""
    torch.manual_seed(5)
    network = torchvision_models.resnet18(num_classes=1000)
    torch.save(network.state_dict(), tmp_path / "resnet18.pt")
    return network, str(tmp_path / "resnet18.pt")


def test_weights_from_a_file_are_those_of_all_layers_but_the_last(saved):
    network, path = saved
    classifier = Classifier(name="torchvision:resnet18", weights=path)
    model = build(classifier, 7, *GREY, seed=0)
    loaded = model[1].state_dict()
    for k, v in network.state_dict().items():
        assert k.startswith("fc.") or torch.equal(loaded[k], v), k
    assert loaded["fc.weight"].shape == (7, 512)
    x = torch.rand(2, 1, 64, 64)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    network.fc = model[1].fc
    normalised = (x - mean.view(1, -1, 1, 1)) / std.view(1, -1, 1, 1)
    torch.testing.assert_close(model.eval()(x), network.eval()(normalised))


@pytest.mark.parametrize("how", ["freeze_backbone", "head_only"])
def test_a_frozen_backbone_stays_and_the_head_learns(saved, how):
    classifier = Classifier(name="torchvision:resnet18", weights=saved[1], **{how: True})
    model = build(classifier, 7, *RGB, seed=0)
    learner = Learner(model, Training(epochs=1), total_steps=1, noise=torch.Generator())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    learner.begin_step()
    learner.descend(F.cross_entropy(learner.logits(torch.rand(4, 3, 32, 32)), torch.arange(4)))
    moved = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    statistics = {k for k in moved if "running" in k or "num_batches" in k}
    assert moved - statistics == {"1.fc.weight", "1.fc.bias"}
    assert bool(statistics) == (how == "freeze_backbone")
    assert list(learner.weights()) == ["1.fc.weight", "1.fc.bias"]


def test_wrong_weights_are_refused_in_a_sentence(saved, tmp_path):
    def message(weights, name="torchvision:resnet18"):
        with pytest.raises(UserError) as caught:
            build(Classifier(name=name, weights=str(weights)), 7, *RGB, seed=0)
        return str(caught.value)

    assert "nothing.pt does not exist" in message(tmp_path / "nothing.pt")
    assert "is no state dict of torchvision:resnet34" in message(saved[1], "torchvision:resnet34")
    (tmp_path / "text.pt").write_text("no weights")
    assert "cannot load" in message(tmp_path / "text.pt")
    with pytest.raises(ValidationError, match="weights can be set .* not for cnn"):
        Classifier(name="cnn", weights="imagenet")
    for how in ("freeze_backbone", "head_only"):
        with pytest.raises(ValidationError, match=f"{how} needs weights"):
            Classifier(name="resnet50", **{how: True})


def test_the_classifier_sees_the_middle():
    model = build(Classifier(crop=16), 3, *GREY, seed=0).eval()
    x = torch.rand(2, 1, 20, 22)
    changed = x.clone()
    changed[..., :2, :] = changed[..., -2:, :] = changed[..., :3] = changed[..., -3:] = 0
    assert torch.equal(model(x), model(changed))
    assert not torch.equal(model(x), model(x * 0.5))
    assert torch.equal(model(x), build(Classifier(), 3, *GREY, seed=0).eval()(x[..., 2:18, 3:19]))
