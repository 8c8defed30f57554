"""An oracle of the hypergradient: the meta loss after a step that the classifier takes by hand."""

import torch
from torch.func import functional_call
from torch.nn import functional as F


def meta_loss(model, weights, rule, images, labels, meta_images, meta_labels):
    """() The meta loss after one step of SGD without momentum from `weights` (name -> tensor)."""
    w = {k: v.clone().requires_grad_() for k, v in weights.items()}
    loss = F.cross_entropy(functional_call(model, w, (images,)), labels)
    grads = torch.autograd.grad(loss, list(w.values()), materialize_grads=True)
    stepped = {
        k: (v - rule.lr * (g + rule.weight_decay * v)).detach()
        for (k, v), g in zip(w.items(), grads, strict=True)
    }
    return F.cross_entropy(functional_call(model, stepped, (meta_images,)), meta_labels)
