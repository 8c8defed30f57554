"""The order of a network's blocks: timm's groups are the oracle."""

import re

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torchvision import models as torchvision_models
from transformers import ViTConfig, ViTForImageClassification

from autoaug_ray import models
from autoaug_ray.learner import Learner
from autoaug_ray.models.layers import depths, in_order
from autoaug_ray.settings.classifier import Classifier
from autoaug_ray.settings.training import Training

NETWORKS = {
    "vit_tiny_patch16_224": {"img_size": 32, "depth": 3, "embed_dim": 24},
    "convnext_atto": {"depths": (1, 2, 1, 1), "dims": (4, 4, 8, 8)},
    "swin_tiny_patch4_window7_224": {
        "img_size": 56, "depths": (2, 2), "embed_dim": 12, "num_heads": (1, 1),
    },
    "resnet18": {},
}  # fmt: skip


@pytest.fixture(scope="module", params=NETWORKS)
def network(request):
    return timm.create_model(request.param, num_classes=3, **NETWORKS[request.param])


def test_rates_and_decays_are_those_of_timm(network):
    """They belong to a part of the model, as `models.build` makes it."""
    theirs = param_groups_layer_decay(
        network, 0.05, network.no_weight_decay() if hasattr(network, "no_weight_decay") else ()
    )
    by_weight = {id(p): (g["lr_scale"], g["weight_decay"]) for g in theirs for p in g["params"]}
    model = torch.nn.Sequential(torch.nn.Identity(), network)
    training = Training(lr=2.0, lr_decay=0.75, weight_decay=0.05, weight_decay_on="matrices")
    learner = Learner(model, training, total_steps=4, noise=torch.Generator())
    learner.begin_step()  # half of the first quarter's rise
    groups = learner.optimiser.param_groups
    ours = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert ours == {p: (scale * 2.0 / 2, decay) for p, (scale, decay) in by_weight.items()}
    assert len(groups) > 4


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18"])
def test_blocks_in_a_row_are_found_where_timm_has_them(name):
    network = timm.create_model(name, num_classes=3, **NETWORKS[name])
    assert in_order(network) == depths(network)


def test_transformers_of_other_libraries_have_the_blocks_of_timms():
    hf = ViTForImageClassification(
        ViTConfig(
            hidden_size=12, num_hidden_layers=3, num_attention_heads=3, intermediate_size=12,
            image_size=32, num_labels=3,
        )
    )  # fmt: skip
    of_torchvision = torchvision_models.VisionTransformer(32, 16, 3, 3, 12, 12, num_classes=3)
    for network in (hf, of_torchvision):
        for name, depth in depths(torch.nn.Sequential(torch.nn.Identity(), network)).items():
            layer = re.search(r"layers?\.(?:encoder_layer_)?(\d)\.", name)
            if layer:
                expected = 1 + int(layer[1])
            elif "head" in name or "classifier" in name:
                expected = 4
            else:
                expected = 3 if ".ln." in name or "vit.layernorm" in name else 0
            assert depth == expected, name


def test_our_networks_have_blocks():
    mean = torch.tensor([0.5])
    found = depths(models.build(Classifier(name="resnet8"), 3, mean, mean, seed=0))
    assert sorted(set(found.values())) == [0, 1, 2, 3, 4]
    assert found["1.0.weight"] == found["1.1.weight"] == 0 and found["1.8.bias"] == 4
