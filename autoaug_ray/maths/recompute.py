"""Passes that are done twice to save memory: parts of a network, and whole losses.

`recomputed` is activation checkpointing that a double backward can go through. What torch offers
(torch.utils.checkpoint) recomputes activations in the first backward pass; with create_graph=True
that pass then keeps all of them for the second one. Here the backward pass of a block is a block,
too, which keeps its inputs only and is itself done again in the second one: 114 MB become 60 for a
ResNet-20 (`python -m autoaug_ray.bench memory`).
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel


def blocks(model: nn.Module) -> list[nn.Module]:
    """The outermost modules of a sequence that hold several layers with weights and are no
    sequences: residual blocks, as they stand in ResNets, MobileNets, ConvNeXts and transformers.
    """
    kinds = (nn.Linear, nn.Conv2d)
    found: list[nn.Module] = []

    def search(module: nn.Module) -> None:
        for child in module.children():
            layers = sum(isinstance(m, kinds) for m in child.modules())
            in_sequence = isinstance(module, nn.Sequential) and module is not model
            if in_sequence and layers > 1 and not isinstance(child, nn.Sequential):
                found.append(child)
            else:
                search(child)

    search(model)
    return found


class Replay:
    """A function that draws the same random numbers of torch at every call as at its first."""

    def __init__(self, f: Callable[..., Tensor]) -> None:
        self.f, self.same_draws = f, SameDraws()

    def __call__(self, *args: Any) -> Tensor:
        with self.same_draws():
            return self.f(*args)


class SameDraws:
    """Blocks in each of which torch's own random numbers are those of the first.

    A difference of two passes needs them, so that dropout drops the same units in both.
    """

    def __init__(self) -> None:
        self.first: _RandomState | None = None

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        if self.first is None:
            self.first = _RandomState()
            yield
        else:
            with self.first.restored():
                yield


class _RandomState:
    """The states of torch's own generators as they were when it was made."""

    def __init__(self) -> None:
        self.cpu = torch.get_rng_state()
        self.devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
        self.cuda = [torch.cuda.get_rng_state(d) for d in self.devices]

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        """Goes back to these states, and at the end to those before."""
        with torch.random.fork_rng(devices=self.devices):
            torch.set_rng_state(self.cpu)
            for device, state in zip(self.devices, self.cuda, strict=True):
                torch.cuda.set_rng_state(state, device)
            yield


@contextlib.contextmanager
def recomputed(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Within this context, the blocks keep their inputs and weights for the backward passes, and
    compute what is inside of them again when it is needed.

    A block takes one tensor and gives one. Buffers, as batch norm's statistics, are written by the
    first computation alone; random numbers, autocast and whether attention may be fused are those
    of the first one.
    """
    for block in blocks:
        block.forward = _Recomputing(block, block.forward)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


class _Recomputing:
    """Stands for a block's `forward` within `recomputed`."""

    def __init__(self, block: nn.Module, plain: Callable[[Tensor], Tensor]) -> None:
        self.block, self.plain = block, plain

    def __call__(self, x: Tensor) -> Tensor:
        # Within functional_call these are the tensors that stand for the block's own.
        weights = dict(self.block.named_parameters())
        buffers = dict(self.block.named_buffers())
        kind = x.device.type
        dtype, bf16 = torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
        fused = torch.backends.cuda.flash_sdp_enabled()  # on any device
        calls = 0

        def forward(x: Tensor, *values: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            if calls == 1:
                return self.plain(x)
            copies = {k: b.clone() for k, b in buffers.items()}
            half = torch.autocast(kind, dtype, enabled=bf16)
            # This runs in a backward pass, outside of what forbade attention's fused kernels.
            attention = contextlib.nullcontext() if fused else sdpa_kernel(SDPBackend.MATH)
            with half, attention:
                tensors = {**dict(zip(weights, values, strict=True)), **copies}
                out: Tensor = functional_call(self.block, tensors, (x,))
            return out

        out: Tensor = _Forward.apply(Replay(forward), x, *weights.values())
        return out


def _again(tensors: Sequence[Tensor], needed: Sequence[bool]) -> tuple[list[Tensor], list[Tensor]]:
    """Leaves with the values of `tensors`, and those of them that are needed."""
    leaves = [t.detach().requires_grad_(n) for t, n in zip(tensors, needed, strict=True)]
    return leaves, [t for t, n in zip(leaves, needed, strict=True) if n]


class _Forward(torch.autograd.Function):
    """f(*tensors), of which only the tensors are kept."""

    @staticmethod
    def forward(ctx: Any, f: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        ctx.f = f
        ctx.save_for_backward(*tensors)
        return f(*tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        needed = ctx.needs_input_grad[1:]
        return None, *_Backward.apply(ctx.f, needed, *cotangents, *ctx.saved_tensors)


class _Backward(torch.autograd.Function):
    """The products a . df/dt for each needed t of the tensors, of which only a and they are kept.

    It has a derivative towards a and all the tensors.
    """

    @staticmethod
    def forward(
        ctx: Any, f: Callable[..., Tensor], needed: Sequence[bool], a: Tensor, *tensors: Tensor
    ) -> tuple[Tensor | None, ...]:
        ctx.f, ctx.needed = f, needed
        ctx.save_for_backward(a, *tensors)
        leaves, wanted = _again(tensors, needed)
        with torch.enable_grad():
            out = f(*leaves)
        products = iter(torch.autograd.grad(out, wanted, a, materialize_grads=True))
        return tuple(next(products) if n else None for n in needed)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        a, *tensors = ctx.saved_tensors
        # Also towards tensors that had no product of their own: images, say, if only weights had.
        towards = ctx.needs_input_grad[2:]
        leaves, _ = _again(tensors, [n or t for n, t in zip(ctx.needed, towards[1:], strict=True)])
        a = a.detach().requires_grad_()
        with torch.enable_grad():
            out = ctx.f(*leaves)
            wanted = [t for t, n in zip(leaves, ctx.needed, strict=True) if n]
            products = torch.autograd.grad(
                out, wanted, a, create_graph=True, materialize_grads=True
            )
        given = [c for c, n in zip(cotangents, ctx.needed, strict=True) if n]
        inputs = [t for t, n in zip((a, *leaves), towards, strict=True) if n]
        found = iter(torch.autograd.grad(products, inputs, given, materialize_grads=True))
        return None, None, *(next(found) if n else None for n in towards)
