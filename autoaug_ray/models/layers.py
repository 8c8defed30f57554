"""The order of a network's weights from the images to the logits, for layer-wise learning rates."""

from collections.abc import Iterator

from torch import nn

from autoaug_ray.errors import UserError
from autoaug_ray.models.libraries import last_layer


def depths(model: nn.Module) -> dict[str, int]:
    """Name of each weight -> number of its block, counted from the images; the last is the head.

    timm's networks say themselves which weights belong together (`group_matcher`), and
    `timm.optim.param_groups_layer_decay` asks them so. In others, a block is what stands in an
    outermost Sequential or ModuleList, and the layer that gives the logits. Weights before the
    first of these, such as a transformer's embeddings, are one block, and others, such as a norm,
    belong to the block before them. Raises UserError for a network without blocks in a row.
    """
    for name, module in model.named_modules():
        if hasattr(module, "group_matcher"):
            from timm.models import group_parameters

            prefix = f"{name}." if name else ""
            groups = group_parameters(module, module.group_matcher(coarse=False), reverse=True)
            return {prefix + weight: int(depth) for weight, depth in groups.items()}
    return in_order(model)


def in_order(model: nn.Module) -> dict[str, int]:
    """`depths` of a network that does not say which weights belong together."""
    network, prefix = model, ""
    while len(inner := [(k, m) for k, m in network.named_children() if _matrices(m)]) == 1:
        prefix, network = f"{prefix}{inner[0][0]}.", inner[0][1]
    blocks = [last_layer(model)[0], *_blocks(network, prefix)]
    if len(blocks) == 1:
        raise UserError(
            "train.lr_decay needs a network that has blocks in a Sequential or ModuleList, one "
            "after the other; this one has none."
        )
    out: dict[str, int] = {}
    depth, here = 0, ""
    for name, _ in model.named_parameters():
        block = next((b for b in blocks if name.startswith(f"{b}.")), here)
        if block != here:
            here = block
            depth += bool(out)
        out[name] = depth
    return out


def _blocks(module: nn.Module, prefix: str) -> Iterator[str]:
    """The names of what has matrices in the outermost Sequentials and ModuleLists of a module."""
    rows = (nn.Sequential, nn.ModuleList)
    for name, child in module.named_children():
        if type(module) not in rows or type(child) in rows:
            yield from _blocks(child, f"{prefix}{name}.")
        elif _matrices(child):
            yield prefix + name


def _matrices(module: nn.Module) -> bool:
    """Whether it has more than norms: these belong to what they follow."""
    return any(p.dim() > 1 for p in module.parameters())
