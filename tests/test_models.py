import pytest
import torch
from pydantic import ValidationError
from torchvision import models as torchvision_models

from autoaug_ray.models import CLASSIFIERS, Classifier, build, parameter_count

GREY = torch.tensor([0.3]), torch.tensor([0.2])
RGB = torch.full((3,), 0.4), torch.full((3,), 0.2)


@pytest.mark.parametrize("name", sorted(set(CLASSIFIERS) - {"wrn-28-10", "resnet50"}))
@pytest.mark.parametrize("statistics", [GREY, RGB], ids=["grey", "rgb"])
def test_logits_for_every_classifier(name, statistics):
    model = build(Classifier(name=name), 7, *statistics, seed=0).eval()
    assert model(torch.rand(2, len(statistics[0]), 32, 32)).shape == (2, 7)


def test_parameter_counts_are_the_papers():
    def count(name, classes):
        return parameter_count(build(Classifier(name=name), classes, *RGB, seed=0))

    # torchvision's own, less the 7x7 stem and plus a 3x3 one.
    reference = parameter_count(torchvision_models.resnet18(num_classes=10))
    assert count("resnet18", 10) == reference - 64 * 3 * 49 + 64 * 3 * 9
    assert count("resnet50", 1000) == parameter_count(torchvision_models.resnet50())
    assert round(count("wrn-28-10", 10) / 1e6, 1) == 36.5


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
