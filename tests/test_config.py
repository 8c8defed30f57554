import json
import math
from pathlib import Path

import pytest

from autoaug_ray import config
from autoaug_ray.config import Run, Study, study
from autoaug_ray.errors import UserError
from autoaug_ray.settings.tree import read_yaml

DATA = "dataset: {name: fashion-mnist-mini}\n"


def load(text, tmp_path, **kwargs):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    (loaded,) = config.load(path, **kwargs)
    return loaded


def test_a_study(tmp_path):
    loaded = load(
        DATA + "train: {lr: 1e-2}\nseeds: [3, 5]\nmodel: resnet18\nmethods:\n"
        "  none:\n"
        "  grid: {method: random_affine, scale_x: {grid: [0, 0.2]}, shear_x: {grid: [0, .1, .2]}}\n"
        "  mine: {method: bilevel, lr: 1e-3, controls: [off, train_loss]}\n",
        tmp_path,
    )
    assert loaded.name == "mine" and loaded.train.lr == 0.01 and loaded.seeds == (3, 5)
    assert loaded.model.name == "resnet18"
    assert [e.label for e in loaded.entries] == [
        "none", "grid", "mine", "mine learn:off", "mine learn:train_loss",
    ]  # fmt: skip
    assert len(loaded.entry("grid").grid()) == 6
    control = loaded.entry("mine learn:off")
    assert control.control_of == "mine" and control.method({}).learn == "off"
    assert control.method({}).lr == 1e-3


def test_off_is_a_word_and_1e_3_a_number():
    tree = read_yaml("a: off\nb: 1e-3\nc: true\nd: [on, no, 3, 4.5]", "")
    assert tree == {"a": "off", "b": 0.001, "c": True, "d": ["on", "no", 3, 4.5]}


@pytest.mark.parametrize(
    "scalar, value",
    [
        ("010", 10), ("0o10", 8), ("0x1F", 31), ("1:30", "1:30"), ("yes", "yes"), ("No", "No"),
        ("True", True), ("~", None), ("null", None), ("1_000", 1000), ("-1E+3", -1000.0),
        (".5", 0.5), ("5.", 5.0), ("'1'", "1"), (".inf", math.inf), ("1e5", 1e5),
    ],
)  # fmt: skip
def test_scalars_are_those_of_yaml_1_2(scalar, value):
    assert repr(read_yaml(f"a: {scalar}", "")) == repr({"a": value})


def test_merge_keys_merge_and_a_key_of_their_own_wins():
    tree = read_yaml("a: &x {p: 1, q: 2}\nb: {<<: *x, q: 3}\nc: {q: 4, <<: *x}", "")
    assert tree["b"] == {"p": 1, "q": 3} and tree["c"] == {"p": 1, "q": 4}


@pytest.mark.parametrize(
    "text, message",
    [
        ("a: b\nc: d: e", "f.yaml is not valid YAML: line 2, column 5: mapping values are not"),
        ("a: 1\nb:\n  c: 1\n  c: {d: 2}", 'line 4, column 3: found duplicate key "c".'),
        ("!!python/name:os.system a", "line 1, column 1: could not determine a constructor"),
        ("a: *b", "line 1, column 4: found undefined alias 'b'."),
        ("a: \x00", "f.yaml is not valid YAML: unacceptable character"),
    ],
)
def test_what_is_no_yaml_is_said_with_its_line(text, message):
    with pytest.raises(UserError) as error:
        read_yaml(text, "f.yaml is not valid YAML")
    assert message in str(error.value) and "\n" not in str(error.value)


FAULTS = {
    "methods: {none: {}, bilvel: {}}":
        r"methods.bilvel.method: unknown method 'bilvel' \(did you mean bilevel\?\); known: none,",
    "methods: {none: {}, bilevel: {lrr: 1}}":
        r"methods.bilevel.lrr: unknown key \(did you mean lr\?\); known: .*weight_decay",
    "methods: {none: {}, bilevel: {lr: -1}}": "methods.bilevel.lr: .*greater than 0, got -1",
    "methods: {none: {}, bilevel: {lr: fast}}": "methods.bilevel.lr: .*valid number, got 'fast'",
    "methods: {none: {}, bilevel: {group: afine}}":
        "methods.bilevel.group: .*'affine'.*got 'afine'",
    "methods: {none: {}, bilevel: {lr: {loguniform: [0, 1]}}}":
        r"methods.bilevel.lr.loguniform must have low > 0, got \[0, 1\]",
    "methods: {none: {}, bilevel: {lr: {uniform: [1, 0.1]}}}":
        r"methods.bilevel.lr.uniform must be \[low, high\] with low < high",
    "methods: {none: {}, bilevel: {lr: {grid: []}}}": "methods.bilevel.lr.grid must be a list",
    "methods: {none: {}, bilevel: {lr: {grid: [0.1], choice: [0.2]}}}":
        "methods.bilevel.lr must have one of grid, choice",
    "methods: {none: {}, bilevel: {lr: {grid: [0.1, 100]}}}":
        "methods.bilevel.lr: .*less than or equal to 10, got 100",
    "methods: {none: {}, randaugment: {magnitude: {randint: [5, 40]}}}":
        "methods.randaugment.magnitude: .*equal to 30, got 39",
    "methods: {none: {}, bilevel: {learn: decay_only}}":
        "methods.bilevel: learn: decay_only needs a weight_decay above 0",
    "methods: {none: {}, predefined: {scale: [2, 1]}}": r"scale must be \[low, high\]",
    "methods: {none: {}, pba: {policy: [1]}}": "policy must have 60 integers, but has 1",
    "methods: {none: {controls: [off]}}": "methods.none.controls: none learns nothing",
    "methods: {none: {}, a/b: {method: none}}": "methods.a/b: a label is made of letters",
    "methods: {none: 3}": "methods.none must map hyperparameters to values, got 3",
    "methods: {none: {search: {sample: 3}}}":
        r"methods.none.search.sample: unknown key \(did you mean samples\?\)",
    "methods: {none: {search: {scheduler: hyperband}}}":
        "methods.none.search.scheduler: .*'fifo' or 'asha', got 'hyperband'",
    "methods: {none: {resources: {gpus: -1}}}": "methods.none.resources.gpus: .*got -1",
    "methods: {predefined: {}}": "reference is 'none', which is no label of methods",
    "methods: {}": "methods must map at least one label",
    "methods: {none: {}}\nseeds: 0": "seeds must be between 1 and 100000",
    "methods: {none: {}}\nseeds: [1, 1]": "seeds must be different whole numbers",
    "methods: {none: {}}\ntrain: {epoch: 3}": r"train.epoch: unknown key \(did you mean epochs\?\)",
    "methods: {none: {}}\ntrain: {epochs: 2.5}": "train.epochs: .*valid integer, got 2.5",
    "methods: {none: {}}\ntrain: {epochs: 0}": "train.epochs: .*equal to 1, got 0",
    "methods: {none: {}}\nmodel: resnet":
        "model.name: unknown .* mean resnet8..; known: cnn, .*'resnet'",
    "methods: {none: {}}\nval_fraction: 1": "val_fraction: .*less than 1, got 1",
    "methods: {none: {}}\npublished: {entries: {none: {accuracy: 90}}}":
        "published.source is missing",
    "methods: {none: {}}\npublished: {source: x}":
        "published: needs entries, quoted, claims or notes",
    "methods: {none: {}}\npublished: {source: x, sources: y, quoted: {a: {accuracy: 90}}}":
        r"published.sources: unknown key \(did you mean source\?\); known: claims, entries",
    "methods: {none: {}}\npublished: {source: x, entries: {nonne: {accuracy: 90}}}":
        r"published.entries.nonne: no label of methods \(did you mean none\?\); known: none \(",
    "methods: {none: {}}\npublished: {source: x, quoted: {none: {accuracy: 90}}}":
        "published.quoted.none: a label of methods",
    "methods: {none: {}}\npublished: {source: x, entries: {none: {accurcy: 90}}}":
        r"published.entries.none.accurcy: unknown key \(did you mean accuracy\?\); known: acc",
    "methods: {none: {}}\npublished: {source: x, entries: {none: {accuracy: 0.95}}}":
        "published.entries.none.accuracy: .*equal to 1, got 0.95",
    "methods: {none: {}}\npublished: {source: x, entries: {none: {accuracy: 90, sd: 1, seeds: 1}}}":
        "published.entries.none: sd is over seeds, of which there must be at least 2, got 1",
    "methods: {none: {}}\npublished: {source: x, entries: {none: {accuracy: 9, cost_is: about}}}":
        "published.entries.none: cost_is: about needs a cost",
    "methods: {none: {}}\npublished: {source: x, entries: {none: {accuracy: 9, cost: > 60}}}":
        "not valid YAML",
    "methods: {none: {}}\npublished: {source: x, entries: {none: {accuracy: 9, cost: '> 60'}}}":
        "published.entries.none.cost: .*valid number, got '> 60'",
    "methods: {none: {}}\npublished: {source: x, measure: mean, quoted: {a: {accuracy: 90}}}":
        "published.measure: .*'micro' or 'macro', got 'mean'",
    "methods: {none: {}}\nmethod: {}": r"method: unknown key \(did you mean methods\?\)",
    "methods: {none: {}}\ndataset: {name: fashion}": "dataset.name: .*'fashion'",
    "methods: {none: {}}\ndataset: {name: cifar10, channels: 1}": "channels can be set for",
    "methods: {none: {}}\ndataset: {name: cifar10, shift: {translat: 1}}":
        r"dataset.shift.translat: unknown key \(did you mean translate\?\)",
    "methods: {none: {}, none: {}}": 'line 2, column 21: found duplicate key "none"',
    "methods: {none: {}": "not valid YAML",
    "- 1": "must hold a mapping",
}  # fmt: skip


@pytest.mark.parametrize("text", FAULTS, ids=range(len(FAULTS)))
def test_a_fault_is_one_sentence_that_names_its_key(text, tmp_path):
    text_ = text if "dataset:" in text or text[0] == "-" else DATA + text
    with pytest.raises(UserError, match=FAULTS[text]) as error:
        load(text_, tmp_path)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="nothing.yaml cannot be read"):
        config.load(tmp_path / "nothing.yaml")


def test_changes_from_the_command_line(tmp_path):
    text = DATA + "model: cnn\nmethods: {none: , bilevel: {lr: 0.1}}"
    changes = ["train.epochs=5", "model.width=4", "methods.bilevel.lr={grid: [0.1, 0.2]}",
               "methods.bilevel.controls=[]", "methods.none.flip="]  # fmt: skip
    with pytest.raises(UserError, match="methods.none.flip: unknown key"):
        load(text, tmp_path, changes=changes)
    loaded = load(text, tmp_path, changes=changes[:-1], seeds=2)
    assert (loaded.train.epochs, loaded.model.width, loaded.seeds) == (5, 4, (0, 1))
    assert [e.label for e in loaded.entries] == ["none", "bilevel"]
    assert len(loaded.entries[1].grid()) == 2
    for bad, message in (("train", "write it as dotted.key=value"), ("seeds.x=1", "has no keys")):
        with pytest.raises(UserError, match=message):
            load(text + "\nseeds: 3", tmp_path, changes=[bad])


def test_a_run_survives_json_and_its_key_is_its_content(tmp_path):
    loaded = load(DATA + "methods: {none: , bilevel: {lr: {grid: [0.1, 0.2]}}}", tmp_path)
    entry = loaded.entry("bilevel")
    a, b = (loaded.run(entry, "final", seed=0, choices=c) for c in entry.grid())
    assert Run.model_validate_json(a.model_dump_json()).key == a.key != b.key
    assert a.key != loaded.run(entry, "final", seed=1, choices={"lr": 0.1}).key
    again = loaded.run(entry, "final", seed=0, choices={"lr": 0.1})
    assert again == a and again.key == a.key


def test_a_label_may_say_whose_settings_a_row_has(tmp_path):
    loaded = load(DATA + "methods: {none: , bilevel (ours): {method: bilevel}}", tmp_path)
    labels = ["none", "bilevel (ours)", "bilevel (ours) learn:off"]
    assert [entry.label for entry in loaded.entries] == labels


def test_a_study_survives_json(tmp_path):
    loaded = load(DATA + "methods: {none: , bilevel: {lr: {loguniform: [0.1, 0.2]}}}", tmp_path)
    assert config.Study.model_validate_json(loaded.model_dump_json()) == loaded


SPACES = sorted((Path(__file__).parent.parent / "search_spaces").glob("*.yaml"))


@pytest.mark.parametrize("path", SPACES, ids=lambda p: p.stem)
def test_every_study_loads_and_its_header_states_command_and_result(path):
    config.load(path)
    header = path.read_text().split("\n\n")[0]
    assert f"run_all.py search_spaces/{path.name}" in header or path.stem == "quickstart"
    for word in ("python run_all.py", "Cost:"):
        assert word in header, f"{path.name}: the header comment has no {word}"
    # A study that nobody has run has no result; then it says so, and what was published.
    run = "Result:" in header
    expected = all(word in " ".join(header.split("\n# ")) for word in ("Expected", "Not run by us"))
    assert run or expected, f"{path.name}: neither a result nor what is expected"
    assert "TODO" not in header


def test_study_is_a_function_of_the_tree():
    tree = {"dataset": {"name": "fashion-mnist-mini"}, "methods": {"none": None}}
    assert study(tree, name="x") == study(tree, name="x")
    assert set(tree) == {"dataset", "methods"}


def test_cases_change_the_study_and_the_command_line_has_the_last_word(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        DATA + "methods: {none: }\ncases:\n"
        "  f=0.01: {dataset.imbalance: {factor: 0.01, largest: 50}}\n"
        "  f=0.1: {dataset.imbalance: {factor: 0.1, largest: 50}, train.epochs: 3}\n"
    )
    a, b = config.load(path, changes=["dataset.imbalance.largest=40"])
    assert (a.name, a.case, b.case) == ("mine", "f=0.01", "f=0.1")
    assert (a.dataset.imbalance.factor, b.dataset.imbalance.factor) == (0.01, 0.1)
    assert a.dataset.imbalance.largest == b.dataset.imbalance.largest == 40
    assert (a.train.epochs, b.train.epochs) == (10, 3)
    for text, message in (
        ("cases: []", "cases must map"),
        ("cases: {a/b: {}}", "cases.a/b: a case's name"),
        ("cases: {a: {dataset.imbalnce.factor: 1}}", "dataset.imbalnce: unknown key"),
        ("case: a", "case: unknown key"),
        ("generate: {strengh: 1}", r"generate.strengh: unknown key \(did you mean strength"),
        ("generate: {prefix: a photo}", "generate.prefix: must hold {name} once"),
        ("workers: {gpus: -1}", "workers.gpus: .*got -1"),
        ("dataset: {name: cifar10, imbalance: {factor: 2}}", "dataset.imbalance.factor: .*got 2"),
    ):
        path.write_text(("" if text.startswith("dataset") else DATA) + "methods: {none: }\n" + text)
        with pytest.raises(UserError, match=message):
            config.load(path)


PUBLISHED = """published:
  source: A paper, Table 1
  entries:
    none: {accuracy: 88.55, cost: 1}
    bilevel learn:off: {accuracy: 95, sd: 0.1, seeds: 8, cost: 60, cost_is: more than}
  quoted:
    AutoAugment (ResNet32): {accuracy: 95.5, source: another paper}
"""


def test_what_a_paper_published_is_part_of_the_study_but_of_no_run(tmp_path):
    text = DATA + "methods: {none: , bilevel: }\n"
    plain, loaded = load(text, tmp_path), load(text + PUBLISHED, tmp_path)
    assert loaded.published.entries["bilevel learn:off"].cost_is == "more than"
    assert loaded.published.quoted["AutoAugment (ResNet32)"].accuracy == 95.5
    assert config.Study.model_validate_json(loaded.model_dump_json()) == loaded
    for a, b in zip(plain.entries, loaded.entries, strict=True):
        runs = [s.run(e, "final", seed=0, choices={}) for s, e in ((plain, a), (loaded, b))]
        assert runs[0] == runs[1] and runs[0].key == runs[1].key
    changed = load(
        text + PUBLISHED, tmp_path, changes=["published.entries.none.accuracy=90", "model=resnet18"]
    )
    assert changed.published.entries["none"].accuracy == 90
    assert load(text + PUBLISHED, tmp_path, changes=["published="]).published is None


def test_a_case_has_its_own_published_figures(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        DATA + "methods: {none: }\npublished: {source: A paper, notes: [one]}\ncases:\n"
        "  a: {published.entries: {none: {accuracy: 80}}}\n"
        "  b: {published: {source: Another, entries: {none: {accuracy: 70}}}}\n"
        "  c: {published: }\n"
    )
    a, b, c = config.load(path)
    assert (a.published.source, a.published.notes) == ("A paper", ("one",))
    assert a.published.entries["none"].accuracy == 80
    assert (b.published.source, b.published.notes) == ("Another", ())
    assert c.published is None


def test_what_is_ranked_are_labels(tmp_path):
    text = DATA + "methods: {none: , bilevel: , randaugment: }\n"
    labels = ["none", "bilevel", "randaugment"]
    study = load(text, tmp_path, changes=[f"ranked={labels}"])
    assert study.ranked == tuple(labels) and load(text, tmp_path).ranked == ()
    for wrong, message in (
        ("[none, bilevel, randaugmnt]", r"ranked.randaugmnt: no label .*did you mean randaugment"),
        ("[none, bilevel]", "ranked must be at least 3 different labels"),
        ("[none, none, bilevel]", "ranked must be at least 3 different labels"),
    ):
        with pytest.raises(UserError, match=message):
            load(text, tmp_path, changes=[f"ranked={wrong}"])


def test_a_control_comes_by_default_with_what_learns_by_default(tmp_path):
    loaded = load(
        DATA + "methods:\n  none:\n"
        "  bilevel:\n"
        "  loss: {method: bilevel, learn: train_loss}\n"
        "  autogenda:\n"
        "  online: {method: autogenda, learn: online}\n"
        "  both: {method: autogenda, learn: online, controls: [off]}\n",
        tmp_path,
    )
    controls = {e.label: e.control_of for e in loaded.entries if e.control_of}
    assert controls == {"bilevel learn:off": "bilevel", "both learn:off": "both"}


TREE = {"dataset": {"name": "fashion-mnist-mini"}, "methods": {"none": {}, "bilevel": None}}


def test_a_study_from_python_is_that_of_its_yaml(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        DATA + "model: cnn\nmethods: {none: {}, randaugment: {num_ops: {grid: [1, 2]}}}\n"
    )
    tree = {
        "dataset": {"name": "fashion-mnist-mini"}, "model": "cnn",
        "methods": {"none": {}, "randaugment": {"num_ops": {"grid": (1, 2)}}},
    }  # fmt: skip
    before = repr(tree)
    assert Study.from_dict(tree, name="mine") == Study.from_yaml(path) == config.load(path)[0]
    assert repr(tree) == before
    changed = Study.from_yaml(str(path), changes={"train.epochs": 7, "model.width": 3}, seeds=2)
    assert changed == Study.from_yaml(path, changes=["train.epochs=7", "model.width=3"], seeds=2)
    assert (changed.train.epochs, changed.model.width, changed.seeds) == (7, 3, (0, 1))


def test_paths_may_stand_in_a_study_from_python(tmp_path):
    dataset = {"name": "folder", "root": tmp_path}
    assert Study.from_dict({**TREE, "dataset": dataset}).dataset.root == str(tmp_path)
    with pytest.raises(UserError, match=r"mine: .*complex; only plain values and paths are"):
        Study.from_dict({**TREE, "seeds": 1j}, name="mine")


def test_one_case_is_named_and_all_are_loaded(tmp_path):
    path = tmp_path / "mine.yaml"
    cases = {"long": {"train.epochs": 9}, "short": {"train.epochs": 1}}
    path.write_text(json.dumps({**TREE, "cases": cases}))
    assert [study.case for study in config.load(path)] == ["long", "short"]
    assert Study.from_yaml(path, case="short").train.epochs == 1
    assert Study.from_dict({**TREE, "cases": cases}, case="long").train.epochs == 9
    for case in (None, "lng"):
        with pytest.raises(UserError, match=rf"one of mine's, got {case!r}: long, short; load_st"):
            Study.from_yaml(path, case=case)
    with pytest.raises(UserError, match="case: study has no cases, got 'x'"):
        Study.from_dict(TREE, case="x")
