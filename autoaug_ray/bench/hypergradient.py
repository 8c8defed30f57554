"""What each way to the augmenter's gradient costs, and how right it is."""

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from autoaug_ray import data, models, train
from autoaug_ray.bench import DATASET, Outcome, device_of, now
from autoaug_ray.config import Run
from autoaug_ray.data import Split
from autoaug_ray.errors import UserError
from autoaug_ray.learner import Learner
from autoaug_ray.maths import hypergradient as hg
from autoaug_ray.methods import AnyMethod
from autoaug_ray.methods.base import NextMeta, Task, as_float
from autoaug_ray.methods.bilevel import Bilevel
from autoaug_ray.methods.bilevel_state import BilevelState
from autoaug_ray.methods.predefined import NoAugmentation, RandomAffine
from autoaug_ray.settings.classifier import Classifier
from autoaug_ray.settings.training import Training
from autoaug_ray.store import meter as metering
from autoaug_ray.store.meter import TRAINING, Meter

AIM = 1.5
"""A whole bilevel training should cost at most so many plain ones."""

Step = Callable[[Learner, Split, NextMeta, Any], object]
"""`Method.step`, or a function of the same arguments."""

EPSILON = 0.01
"""Distance in weight space, as a Euclidean length, over which differences are taken."""
DEEPEST = 5
"""Steps of the largest unrolling here."""
SLICE = 2
"""Steps that one variant does before the next one's turn."""
SLICES = 8
"""Rounds of timed single steps for every repeat of the whole trainings."""
STILL = 1e-12
"""Learning rate of an augmenter that is to stay where it is."""
EACH_STEP: Mapping[str, Any] = {"estimator": "exact", "every": 1, "until": 1.0, "lr": STILL}
"""Settings of a method whose every step is an exact outer step, at one and the same theta."""


class Variant(NamedTuple):
    """One way to do a training step; all variants get the same batches and the same noise."""

    name: str
    method: AnyMethod
    step: Step
    estimates: bool
    """Whether the step gives `BilevelState.record` an estimate of the hypergradient."""

    @property
    def unroll(self) -> int:
        """Steps K through which the variant differentiates."""
        return self.method.unroll if isinstance(self.method, Bilevel) else 1


def variants() -> list[Variant]:
    """All variants. The first, a plain step, is the unit of cost; cosines are to the second, which
    is exact."""

    def learned(name: str, **settings: Any) -> Variant:
        method = Bilevel(**{**EACH_STEP, **settings})
        return Variant(name, method, method.step, settings.get("learn") is None)

    def differences(name: str, *, central: bool) -> Variant:
        method = Bilevel(**EACH_STEP)
        return Variant(name, method, finite_difference_step(method, central=central), True)

    def channels_first(learner: Learner, *rest: Any) -> None:
        learner.model.to(memory_format=torch.contiguous_format)
        plain.step(learner, *rest)

    plain = NoAugmentation()
    affine = RandomAffine(
        scale_x=0.2, shear_x=0.2, translate_x=0.2, shear_y=0.2, scale_y=0.2, translate_y=0.2
    )
    return [
        Variant("plain step, no augmentation", plain, plain.step, False),
        learned("exact, K=1 (in the trainer's step)"),
        learned("alignment", estimator="alignment"),
        learned("alignment, meta_every: 4", estimator="alignment", meta_every=4),
        Variant("plain step, channels first", plain, channels_first, False),
        Variant("plain step, fixed random affine", affine, affine.step, False),
        learned("gradient of the training loss", learn="train_loss"),
        learned("exact, K=2", unroll=2),
        learned(f"exact, K={DEEPEST}", unroll=DEEPEST),
        differences("finite difference, one-sided", central=False),
        differences("finite difference, central", central=True),
        learned("exact, half of the batch", fraction=0.5),
        learned("exact, quarter of the batch", fraction=0.25),
    ]


def finite_difference_step(method: Bilevel, *, central: bool) -> Step:
    """A bilevel step of K = 1 that takes a difference quotient for the second derivative."""

    def step(learner: Learner, batch: Split, next_meta: NextMeta, state: BilevelState) -> None:
        x = as_float(batch.images)
        x = method.before(x, method.draw_flips(state, x, learner.noise), learner.noise)
        z = state.augmenter.draw(len(x), learner.noise)
        meta, rule, hold = next_meta(len(x)), learner.rule, method.hold(state)

        def augmented(part: slice) -> Tensor:
            return state.augmenter.apply_to(x[part], state.augmenter(z[part]))

        def look_ahead(
            w: hg.Weights, m: hg.Weights, g: hg.Weights
        ) -> tuple[hg.Weights, hg.Weights]:
            return rule(w, m, hold(g) if hold else g)

        theta = list(state.augmenter.parameters())
        h = finite_difference(
            learner.loss_at(augmented, batch.labels),
            learner.loss_at(as_float(meta.images), meta.labels),
            {k: v.detach().requires_grad_() for k, v in learner.weights().items()},
            learner.buffers(),
            theta,
            look_ahead,
            central=central,
        )
        state.record(h.theta)
        state.move(h.theta)
        learner.apply(h.weights)

    return step


def finite_difference(
    train_loss: hg.Loss, meta_loss: hg.Loss, w: hg.Weights, m: hg.Weights, theta: Sequence[Tensor],
    update: hg.Update, *, epsilon: float = EPSILON, central: bool = False,
) -> hg.Hypergradient:  # fmt: skip
    """h for K = 1, without a double backward; the notation is that of `maths.hypergradient`.

    With v = dL_v(w')/dg, h = v . dg/dtheta is the change of dL_t/dtheta along v: it is taken from w
    to w + epsilon v / |v|, or if `central` from as far on the other side. Good for smooth networks
    only: the kinks of ReLU, and of max-pooling too, spoil it. `train_loss` must use the same noise
    at every call.
    """
    loss = train_loss(w)
    grads = torch.autograd.grad(loss, [*w.values(), *theta])
    g, at_w = dict(zip(w, grads, strict=False)), grads[len(w) :]
    g_leaves = {k: x.detach().requires_grad_() for k, x in g.items()}
    w_next, _ = update({k: x.detach() for k, x in w.items()}, m, g_leaves)
    loss_next = meta_loss(w_next)
    v = hg.gradient(loss_next, g_leaves)
    length = torch.stack([x.square().sum() for x in v.values()]).sum().sqrt()
    step = epsilon / length.clamp_min(torch.finfo(length.dtype).tiny)

    def towards_theta(sign: float) -> Sequence[Tensor]:
        moved = {k: (w[k] + sign * step * v[k]).detach() for k in w}
        return torch.autograd.grad(train_loss(moved), list(theta), materialize_grads=True)

    low, width = (towards_theta(-1.0), 2 * step) if central else (at_w, step)
    h = [(a - b) / width for a, b in zip(towards_theta(1.0), low, strict=True)]
    return hg.Hypergradient(h, g, loss.detach(), loss_next.detach())


class Batch(NamedTuple):
    """The images of one step in both roles."""

    train: Split
    meta: Split

    def next_meta(self, n: int) -> Split:
        return Split(self.meta.images[:n], self.meta.labels[:n])


class Place:
    """A point in a real bilevel training, from which all variants start."""

    def __init__(
        self, classifier: Classifier, device: torch.device, change: Callable[[nn.Module], None],
        *, warmup: int,
    ) -> None:  # fmt: skip
        """`change` edits the untrained classifier; then `warmup` steps of training are done."""
        self.classifier, self.device, self.change = classifier, device, change
        self.training = Training()
        self.total_steps = 10 * max(warmup, 10)
        self.splits = data.load(DATASET, val_fraction=None, device=device)
        self.shape = Task(*self.splits.train.shape)
        pool = len(self.splits.train)
        train_index, meta_index = train.deal(pool, self.training.meta_fraction, 0, 1)
        self._train = train.shuffled(self.splits.train, train_index, train.stream(0, "order"))
        self._meta = train.shuffled(self.splits.meta, meta_index, train.stream(0, "meta"))
        self._method = Bilevel()
        self._learner, self._state = self._fresh(self._method)
        self.advance(warmup)

    def batch(self) -> Batch:
        size = self.training.batch_size
        return Batch(self._train(size), self._meta(size))

    def advance(self, steps: int) -> None:
        self._learner.model.train()
        for _ in range(steps):
            _train_step(self._learner, self._method.step, self.batch(), self._state)

    @property
    def steps_done(self) -> int:
        return self._learner.steps_done

    def start(self, method: AnyMethod) -> tuple[Learner, Any]:
        """Copies of the learner and the augmenter at this point, for `method` to train on."""
        learner, state = self._fresh(method)
        learner.load_state_dict(copy.deepcopy(self._learner.state_dict()))
        if isinstance(state, BilevelState):
            state.load_state_dict(copy.deepcopy(self._state.state_dict()))
            for group in state.optimiser.param_groups:
                group["lr"] = STILL
        learner.model.train()
        return learner, state

    def _fresh(self, method: AnyMethod) -> tuple[Learner, Any]:
        model = models.build(
            self.classifier, len(self.splits.classes),
            *data.channel_statistics(self.splits.train), seed=0,
        )  # fmt: skip
        self.change(model)
        learner = Learner(
            model.to(self.device),
            self.training,
            total_steps=self.total_steps,
            noise=train.stream(0, "augment", self.device),
        )
        return learner, method.start(self.shape, 0, self.device)


def _train_step(learner: Learner, step: Step, batch: Batch, state: Any) -> None:
    learner.begin_step()
    step(learner, batch.train, batch.next_meta, state)
    learner.end_step()


def as_it_is(model: nn.Module) -> None:
    """Nothing is changed."""


def with_silu(model: nn.Module, *, pools: bool = False) -> None:
    """Turns every ReLU and leaky ReLU, which have a kink, into a smooth SiLU.

    With `pools`, also max-pooling, which has a kink at every tie, into average pooling.
    """
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU | nn.LeakyReLU):
                setattr(module, name, nn.SiLU())
            elif pools and isinstance(child, nn.MaxPool2d):
                pool = nn.AvgPool2d(child.kernel_size, child.stride, child.padding)
                setattr(module, name, pool)
            elif pools and isinstance(child, nn.AdaptiveMaxPool2d):
                setattr(module, name, nn.AdaptiveAvgPool2d(child.output_size))


smooth = partial(with_silu, pools=True)
"""Takes every kink out of a classifier."""
NETS: dict[str, Callable[[nn.Module], None]] = {
    "as is": as_it_is,
    "SiLU": with_silu,
    "smooth": smooth,
}
"""Changes of the classifier, from none to one without any kink."""
ANOTHER = "exact, of another batch and noise"
"""Name of the row that shows how much the exact hypergradient varies between batches."""


def cosines(place: Place, points: int) -> dict[str, list[float]]:
    """Cosine of every estimate's theta-gradient to the exact one's, at `points` points."""
    estimators = [v for v in variants() if v.estimates]
    out: dict[str, list[float]] = {name: [] for name in (*(v.name for v in estimators), ANOTHER)}
    for _ in range(points):
        lead, other = [place.batch() for _ in range(DEEPEST)], place.batch()
        exact = theta_gradient(place, estimators[0], lead)
        for variant in estimators:
            h = theta_gradient(place, variant, lead)
            out[variant.name].append(float(cosine_similarity(h, exact, dim=0)))
        h = theta_gradient(place, estimators[0], [*lead[:-1], other], other_noise=True)
        out[ANOTHER].append(float(cosine_similarity(h, exact, dim=0)))
        place.advance(DEEPEST)
    return out


def theta_gradient(
    place: Place, variant: Variant, lead: Sequence[Batch], *, other_noise: bool = False
) -> Tensor:
    """A variant's estimate of h (n,) at the last batch of `lead`, after training on the others.

    The augmenter stands still meanwhile, so that all variants arrive at the same weights. Variants
    that unroll several steps do the earlier ones in their own way, to remember them.
    """
    learner, state = place.start(variant.method)
    lead_in: AnyMethod = Bilevel(learn="off")
    if variant.unroll > 1:  # remembers these steps, but looks ahead at the last one only
        lead_in = variant.method.model_copy(update={"every": 10_000})
    for batch in lead[:-1]:
        _train_step(learner, lead_in.step, batch, state)
    if other_noise:
        learner.noise.manual_seed(train.seed_of(0, "other noise"))
    before = [total.clone() for total in state.sum]
    _train_step(learner, variant.step, lead[-1], state)
    return torch.cat([(a - b).flatten() for a, b in zip(state.sum, before, strict=True)]).double()


def step_seconds(place: Place, rounds: int) -> dict[str, list[float]]:
    """Seconds per step and round of every variant; a first round, which warms up, is dropped."""
    trainees: list[tuple[Variant, Learner, Any]]
    trainees = [(v, *place.start(v.method)) for v in variants()]
    batch = place.batch()
    for variant, learner, state in trainees:
        for _ in range(DEEPEST):  # so that the unrolled ones have steps to unroll
            _train_step(learner, variant.step, batch, state)
    seconds: dict[str, list[float]] = {variant.name: [] for variant in variants()}
    for _ in range(rounds + 1):
        batches = [place.batch() for _ in range(SLICE)]
        for variant, learner, state in trainees:
            learner.steps_done = place.steps_done  # all at the same learning rate
            begin = now(place.device)
            for batch in batches:
                _train_step(learner, variant.step, batch, state)
            seconds[variant.name].append((now(place.device) - begin) / SLICE)
    return {name: s[1:] for name, s in seconds.items()}


def trainings() -> dict[str, AnyMethod]:
    """Methods whose whole trainings are timed; the first, a plain one, is the unit."""
    out: dict[str, AnyMethod] = {
        "none": NoAugmentation(),
        "learn: off": Bilevel(learn="off"),
    }
    for estimator in ("exact", "alignment"):
        for until in (1.0, 0.5):
            for every in (1, 2, 3, 4):
                name = f"{estimator}, every {every}, until {until:g}"
                out[name] = Bilevel(estimator=estimator, every=every, until=until)
    return out


def training_seconds(
    classifier: Classifier, device: torch.device, epochs: int, repeats: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds that the meter charges for the steps of each whole training, and for a plain one.

    Each training has its own unit, the plain training just before it: a round of all of them takes
    so long that the machine's speed may change meanwhile.
    """

    def once(name: str, method: AnyMethod) -> float:
        run = Run(
            label=name, phase="final", seed=0, model=classifier, val_fraction=0.2,
            dataset=DATASET.model_copy(update={"test_size": 100}),
            train=Training(epochs=epochs), method=method,
        )  # fmt: skip
        meter = Meter(device=device)
        for _ in train.run(run, meter):
            pass
        return sum(meter.seconds()[p] for p in TRAINING)

    (plain, unit), *others = trainings().items()
    seconds: dict[str, list[float]] = {name: [] for name in trainings()}
    units: dict[str, list[float]] = {name: [] for name in trainings()}
    for _ in range(repeats):
        for name, method in others:
            units[name].append(once(plain, unit))
            seconds[name].append(once(name, method))
        seconds[plain] += [units[name][-1] for name, _ in others]
    units[plain] = seconds[plain]
    return seconds, units


def multiples(
    seconds: Mapping[str, Sequence[float]], units: Mapping[str, Sequence[float]]
) -> dict[str, dict[str, float]]:
    """Median and quartiles of the ratios of times to the units measured beside them."""
    out = {}
    for name, s in seconds.items():
        ratios = np.array(s) / np.array(units[name])
        low, cost, high = np.quantile(ratios, [0.25, 0.5, 0.75]).tolist()
        out[name] = {
            "cost": cost, "cost_low": low, "cost_high": high, "seconds": float(np.median(s)),
        }  # fmt: skip
    return out


def classifier_of(model: str, width: int) -> Classifier:
    """The classifier that the options --model and --width name. Raises UserError."""
    try:
        return Classifier(name=model, width=width)
    except ValueError:
        raise UserError(
            f"--model must be one of {', '.join(models.CLASSIFIERS)} or torchvision:NAME, and "
            f"--width at most 4096; got {model!r} and {width}."
        ) from None


def hypergradient(
    *,
    model: Annotated[str, "classifier: cnn, badgan, resnet18, resnet50, wrn-28-10, ..."] = "cnn",
    width: Annotated[int, "channels of the first block of cnn"] = 16,
    device: Annotated[str, "cpu or cuda"] = "cpu",
    repeats: Annotated[int, "times that every whole training is run"] = 3,
    epochs: Annotated[int, "of a whole training (62 steps each)"] = 2,
    warmup: Annotated[int, "steps of training before anything is measured"] = 100,
    batches: Annotated[int, "over which cosines are averaged"] = 8,
) -> Outcome:
    """The cost of every way to the hypergradient, and its cosine to the exact one."""
    where, classifier = device_of(device), classifier_of(model, width)
    place = Place(classifier, where, as_it_is, warmup=warmup)
    timed = step_seconds(place, SLICES * repeats)
    single = multiples(timed, dict.fromkeys(timed, next(iter(timed.values()))))
    whole = multiples(*training_seconds(classifier, where, epochs, repeats))
    cosines_of = {
        net: cosines(Place(classifier, where, change, warmup=warmup), batches)
        for net, change in NETS.items()
    }
    by_name: dict[str, dict[str, dict[str, float]]] = {
        name: {
            net: {"mean": float(np.mean(values[name])), "lowest": min(values[name])}
            for net, values in cosines_of.items()
            if name in values
        }
        for name in (*single, ANOTHER)
    }
    steps = [
        {"name": name, **single.get(name, {}), "cosine": by_name[name]}
        for name in (*single, ANOTHER)
    ]
    totals = [{"name": name, **m, "within_aim": m["cost"] <= AIM} for name, m in whole.items()]
    training = place.training
    figures = {
        "model": model, "width": width, "device": metering.device_name(where),
        "batch_size": training.batch_size, "images": list(place.shape[:3]), "repeats": repeats,
        "warmup": warmup, "batches": batches, "epochs": epochs, "epsilon": EPSILON,
        "parameters": models.parameter_count(place.start(NoAugmentation())[0].model),
        "aim": AIM, "steps": steps, "trainings": totals,
    }  # fmt: skip
    return Outcome(figures, [_hypergradient_table(figures)])


def _hypergradient_table(f: Mapping[str, Any]) -> Table:
    steps, totals = f["steps"], f["trainings"]
    table = Table(
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        title=f"{f['model']} ({f['parameters']:,} parameters) on {f['device']}, batch "
        f"{f['batch_size']} of {'x'.join(map(str, f['images']))}, Fashion-MNIST",
        caption=f"1 is a plain step ({steps[0]['seconds'] * 1e3:.1f} ms), or a plain training of "
        f"{f['epochs']} epochs ({totals[0]['seconds']:.2f} s). Medians of the ratios within a "
        f"round, and their quartiles. Cosines to the exact K=1 gradient of the whole batch (K=2 "
        f"and more are exact, too, but of another loss): means over {f['batches']} batches after "
        f"{f['warmup']} steps, for the net as it is, with SiLU, and with SiLU and average "
        f"pooling (smooth). Finite differences at epsilon = {f['epsilon']:g} / |v|.",
    )
    table.add_column("step", no_wrap=True)
    table.add_column("cost", justify="right", no_wrap=True)
    table.add_column("quartiles", no_wrap=True)
    for net in NETS:
        table.add_column(f"cos {net}", justify="right", min_width=6)
    for row in steps:
        means = [f"{row['cosine'][net]['mean']:.3f}" if row["cosine"] else "" for net in NETS]
        table.add_row(row["name"], *_cost(row), *means)
    table.add_section()
    table.add_row("[bold]whole training[/]", "", "", f"[bold]<= {AIM:g}[/]")
    for row in totals:
        flag = ("yes" if row["within_aim"] else "no") if row["name"] != "none" else ""
        table.add_row(row["name"], *_cost(row), flag)
    return table


def _cost(row: Mapping[str, Any]) -> tuple[str, str]:
    """The cost and its quartiles, as the table shows them; empty if nothing was timed."""
    if "cost" not in row:
        return "", ""
    return f"{row['cost']:.2f}", f"{row['cost_low']:.2f}-{row['cost_high']:.2f}"
