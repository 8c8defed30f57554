"""A policy as a file for other software: what the command `export` writes."""

import ast
import inspect
import json
import pprint
from types import ModuleType
from typing import Any, Literal

from autoaug_ray.errors import UserError
from autoaug_ray.exports import draws, on_albumentations
from autoaug_ray.maths import plans
from autoaug_ray.policy import Policy

Target = Literal["torchvision", "albumentations", "kornia", "json"]
ENDINGS: dict[Target, str] = {
    "torchvision": "policy_torchvision.py",
    "albumentations": "policy_albumentations.yaml",
    "kornia": "policy_kornia.py",
    "json": "policy.json",
}


def text(
    policy: Policy,
    to: Target,
    size: tuple[int, int] | None = None,
    without: tuple[str, ...] = (),
) -> str:
    """The file's content, for images of size (H, W) (None: those of the training).

    `without` names stages and ops that are left out. Raises UserError, in one sentence, for what
    has no equal there.
    """
    if size is not None:
        policy = Policy(policy.method, policy.task._replace(height=size[0], width=size[1]),
                        policy.state.state_dict())  # fmt: skip
    plan = _without(policy.plan(), without)
    what = f"{policy.method.name}, for images of {policy.task.height} x {policy.task.width} pixels"
    if to == "json":
        shape = {"channels": policy.task.channels, "height": policy.task.height,
                 "width": policy.task.width}  # fmt: skip
        content = {"method": policy.method.name, "image": shape, "plan": plan,
                   "in_words": [plans.in_words(stage) for stage in plan]}  # fmt: skip
        return json.dumps(content, indent=1) + "\n"
    words = [f"  {plans.in_words(stage)}" for stage in plan] or ["  nothing"]
    lacks = [f"It lacks {policy.method.left_out}."] if policy.method.left_out else []
    about = [f"A policy of autoaug_ray: {what}.", *lacks, "", *words]
    if to == "albumentations":
        import yaml

        tree = on_albumentations.pipeline(plan, policy.task.size)
        about.append("Translations are in whole pixels, which is all that Albumentations has.")
        return "".join(f"# {line}".rstrip() + "\n" for line in about) + yaml.dump(
            tree, Dumper=_plain_dumper(), sort_keys=False, default_flow_style=None, width=100
        )
    # Not above: a machine may lack one of the two.
    if to == "torchvision":
        from autoaug_ray.exports import on_torchvision as runtime
    else:
        from autoaug_ray.exports import on_kornia as runtime  # type: ignore[no-redef]
    return _code(about, plan, runtime)


def _without(plan: list[plans.Stage], names: tuple[str, ...]) -> list[plans.Stage]:
    """The plan with neither the stages nor the ops of these names; an op leaves a gap."""
    left, found = [], set()
    for stage in plan:
        if stage["stage"] in names:
            found.add(stage["stage"])
            continue
        if stage["stage"] == "ops":
            choices = []
            for choice in stage["choices"]:
                steps = [s for s in choice["steps"] if s["op"] not in names]
                found |= {s["op"] for s in choice["steps"]} & set(names)
                choices.append(choice | {"steps": steps})
            stage = stage | {"choices": choices}
        left.append(stage)
    for name in names:
        if name not in found:
            raise UserError(f"--without {name}: the policy has no stage and no op of this name.")
    return left


def _code(about: list[str], plan: list[plans.Stage], runtime: ModuleType) -> str:
    """A file of its own: what it does, the imports of both modules, the plan, and their code."""
    imports, bodies = set(), []
    for module in (draws, runtime):
        source = inspect.getsource(module)
        nodes = ast.parse(source).body
        heads = [n for n in nodes if isinstance(n, ast.Import | ast.ImportFrom)]
        imports |= {ast.unparse(n) for n in heads if "autoaug_ray" not in ast.unparse(n)}
        after = source.splitlines()[heads[-1].end_lineno :]
        bodies.append("\n".join(line for line in after if not line.startswith("PLAN:")).strip())
    lines = "\n".join(sorted(imports, key=lambda one: (one.startswith("from"), one)))
    data = pprint.pformat(plan, width=100, compact=True, sort_dicts=False)
    head = '"""' + "\n".join(about) + '\n"""\n'
    parts = [f"{head}\n{lines}\n\nPLAN: list[dict[str, Any]] = {data}", *bodies]
    return "\n\n\n".join(parts) + "\n"


def _plain_dumper() -> Any:
    """A dumper that writes out what stands in several places, without anchors."""
    import yaml

    class Plain(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    return Plain
