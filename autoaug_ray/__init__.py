"""Which image augmentation is worth its compute."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autoaug_ray.policy import Policy, load_policy
    from autoaug_ray.report.results import EntryResult, StudyResults, load_results

__version__ = "0.1.0"
__all__ = ["EntryResult", "Policy", "StudyResults", "load_policy", "load_results"]

_PLACES = {
    "Policy": "policy",
    "load_policy": "policy",
    "EntryResult": "report.results",
    "StudyResults": "report.results",
    "load_results": "report.results",
}


def __getattr__(name: str) -> Any:
    # Imported when asked for: the rooms below must not load what they do not need.
    if name in _PLACES:
        return getattr(import_module(f"autoaug_ray.{_PLACES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
