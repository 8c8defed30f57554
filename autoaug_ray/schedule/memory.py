"""How much memory a step takes, and what is said if it is more than there is."""

import contextlib
import os
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from autoaug_ray.config import Run
from autoaug_ray.settings.resources import Resources
from autoaug_ray.store.meter import device_name


class Peak:
    """Bytes of the tensors that a stretch of work had at most at a time, with those it began with.

    On CUDA torch's allocator is asked. Elsewhere the tensors are counted that are made meanwhile
    and not yet freed; what a kernel takes for itself while it runs is not among them, and a process
    takes more for its libraries. What autograd keeps is counted in both ways.
    """

    bytes = 0

    def __init__(self, device: torch.device, held: Iterable[Tensor]) -> None:
        """`held`: what the work begins with; without it, only what is made on top is counted."""
        self.device, self.held = device, list(held)

    @contextlib.contextmanager
    def measured(self) -> Iterator[None]:
        """Within this context runs the work."""
        if self.device.type == "cuda":
            storages = {t.untyped_storage()._cdata: t.untyped_storage() for t in self.held}
            held = sum(storage.nbytes() for storage in storages.values())
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
            yield
            self.bytes = held + torch.cuda.max_memory_allocated(self.device) - before
            return
        live = _Live()
        for tensor in self.held:
            live.count(tensor)
        with live:
            yield
        self.bytes = live.most


class _Live(TorchDispatchMode):
    """Counts the bytes of the storages of all tensors that are made, until they are freed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self.known: dict[int, int] = {}
        """Storage -> its bytes, of those that are alive."""

    def count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        address, size = storage._cdata, storage.nbytes()
        if not size or address in self.known:
            return
        self.known[address] = size
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._freed, address).atexit = False

    def _freed(self, address: int) -> None:
        self.now -= self.known.pop(address)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.count(leaf)
        return out


def capacity(resources: Resources, device: torch.device) -> int:
    """Bytes of memory of a trial's share of its device: of a GPU, or of this machine by CPUs."""
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        return int(total * min(1.0, resources.gpus))
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(total * min(1.0, resources.cpus / (os.cpu_count() or 1)))


def does_not_fit(run: Run, device: torch.device) -> str:
    """A sentence for a run whose step ran out of memory."""
    # A smaller batch, silently, would spoil the comparison with the other runs.
    return (
        f"{run.label}: a batch of {run.train.batch_size} images does not fit in the memory of "
        f"its share of {device_name(device)}; {remedy(run.train.accumulate)}, or give it more of "
        f"a device (resources)."
    )


def remedy(accumulate: int) -> str:
    """What to do about too little memory, where batches are worked off in so many parts."""
    return (
        f"set train.accumulate to {2 * accumulate} (the same gradients from parts of the batch, "
        "each with batch norm statistics of its own) or train.precision to bf16, for all methods "
        "alike"
    )
