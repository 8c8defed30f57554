"""Which image augmentation is worth its compute."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autoaug_ray.policy import Policy, load_policy

__version__ = "0.1.0"
__all__ = ["Policy", "load_policy"]


def __getattr__(name: str) -> Any:
    # Imported when asked for: the rooms below must not load what they do not need.
    if name in __all__:
        from autoaug_ray import policy

        return getattr(policy, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
