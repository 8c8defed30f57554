"""Which image augmentation is worth its compute."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autoaug_ray.config import Study
    from autoaug_ray.config import load as load_studies
    from autoaug_ray.errors import UserError
    from autoaug_ray.policy import Policy, load_policy
    from autoaug_ray.python import compare, run
    from autoaug_ray.report.results import EntryResult, StudyResults, load_results

__version__ = "0.1.0"
__all__ = [
    "EntryResult", "Policy", "Study", "StudyResults", "UserError", "compare", "load_policy",
    "load_results", "load_studies", "run",
]  # fmt: skip

_PLACES = {
    "EntryResult": "report.results:EntryResult",
    "Policy": "policy:Policy",
    "Study": "config:Study",
    "StudyResults": "report.results:StudyResults",
    "UserError": "errors:UserError",
    "compare": "python:compare",
    "load_policy": "policy:load_policy",
    "load_results": "report.results:load_results",
    "load_studies": "config:load",
    "run": "python:run",
}
"""What is imported from here -> the module and its name there."""


def __getattr__(name: str) -> Any:
    # Imported when asked for: the rooms below must not load what they do not need.
    if name in _PLACES:
        module, _, attribute = _PLACES[name].partition(":")
        return getattr(import_module(f"autoaug_ray.{module}"), attribute)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
