"""From Python: studies are run by the command's own code, and results show themselves."""

from pathlib import Path

import pytest
import torch
from hand import Hand, Page
from PIL import Image

import autoaug_ray
from autoaug_ray import python
from autoaug_ray.commands import init
from autoaug_ray.commands import run as command
from autoaug_ray.config import Study
from autoaug_ray.errors import UserError
from autoaug_ray.schedule import cluster
from autoaug_ray.store.files import write_whole


@pytest.fixture
def calls(monkeypatch):
    """What is handed to the command's code, in whose place a study is written by hand."""
    calls = []

    def run_studies(studies, *, out, **options):
        calls.append((studies, out, options))
        for study in studies[0]:
            hand = Hand(Path(out) / study.name / (study.case or ""))
            hand.folder.root.mkdir(parents=True)
            write_whole(hand.folder.root / "study.json", study.model_dump_json().encode())
            for label, accuracy in (("none", 0.5), ("bilevel", 0.7), ("bilevel learn:off", 0.5)):
                hand.finals(label, accuracy, accuracy + 0.01, accuracy - 0.01)
            hand.run("randaugment", error="<b>boom</b>")
        return 1

    monkeypatch.setattr(command, "run_studies", run_studies)
    return calls


def studies(*cases):
    from hand import TREE

    if not cases:
        return Study.from_dict(TREE, name="hand")
    tree = TREE | {"cases": dict.fromkeys(cases, {})}
    return [Study.from_dict(tree, name="hand", case=case) for case in cases]


OPTIONS = {"bank": None, "resume": False, "dry_run": False, "wandb": None, "named": True}


def test_a_study_is_run_by_the_command_and_its_results_are_read(calls, tmp_path):
    study = studies()
    results = autoaug_ray.run(study, out=tmp_path)
    assert calls == [([[study]], str(tmp_path), OPTIONS)]
    assert results.study == study and len(results.failures) == 1
    autoaug_ray.run(study, out=tmp_path / "o", bank=tmp_path / "b", resume=True, wandb="off")
    assert calls[1][2] == OPTIONS | {"bank": str(tmp_path / "b"), "resume": True, "wandb": "off"}


def test_cases_of_a_study_are_run_together_and_named_in_the_results(calls, tmp_path):
    found = autoaug_ray.run(studies("a", "b"), out=tmp_path)
    assert len(calls) == 1 and list(found) == ["a", "b"]
    assert [one.study.case for one in found.values()] == ["a", "b"]
    single = autoaug_ray.run(studies("a")[0], out=tmp_path / "single")
    assert single.study.case == "a" and single.root.name == "a"


def test_a_mode_of_w_and_b_is_one_of_three(calls):
    with pytest.raises(UserError, match="wandb must be one of off, offline, online, got 'no'"):
        autoaug_ray.run(studies(), wandb="no")
    assert not calls


@pytest.mark.parametrize("before", [True, False])
def test_ray_is_left_as_it_was_found(before, calls, tmp_path, monkeypatch):
    left = []
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: before)
    monkeypatch.setattr(cluster, "leave", lambda: left.append(len(calls)))
    autoaug_ray.run(studies(), out=tmp_path)
    with pytest.raises(FileExistsError):  # also if it fails
        autoaug_ray.run(studies(), out=tmp_path)
    assert left == ([] if before else [1, 2])


@pytest.mark.nightly
@pytest.mark.ray
def test_a_ray_that_runs_is_used_and_goes_on(tmp_path, tiny):
    cluster.join()
    results = autoaug_ray.run(tiny({"none": {}}), out=tmp_path)
    assert cluster.ray.is_initialized() and results.entries[0].seeds == (0,)
    with pytest.raises(UserError, match="holds rows of an earlier run; add --resume"):
        autoaug_ray.run(tiny({"none": {}}), out=tmp_path)


@pytest.mark.parametrize("names", [(), ("x", "y"), ("x", "x")])
def test_a_list_is_of_different_cases_of_one_study(names, calls):
    given = [studies().model_copy(update={"name": name}) for name in names]
    with pytest.raises(UserError, match="study must be one study, or different cases of one"):
        autoaug_ray.run(given)
    assert not calls


def test_the_table_has_the_numbers_of_the_reports(calls, tmp_path):
    results = autoaug_ray.run(studies(), out=tmp_path)
    table, rows = results.table(), {r.label: r for r in results.entries}
    assert list(table.index) == ["none", "randaugment", "bilevel", "bilevel learn:off"]
    assert list(table.seeds) == [3, 0, 3, 3]
    one, bilevel = table.loc["bilevel"], rows["bilevel"]
    assert one["accuracy %"] == pytest.approx(70.0) and one["above none"] == pytest.approx(20.0)
    half = 100 * bilevel.difference_half_width
    assert (one["low"], one["high"]) == pytest.approx((20 - half, 20 + half))
    assert one["cost"] == bilevel.relative_cost
    assert table.loc["none", ["above none", "low", "p (Holm)"]].isna().all()
    assert table.loc["randaugment", ["accuracy %", "sd", "cost"]].isna().all()


def test_results_show_themselves_in_a_notebook_with_everything_escaped(tmp_path):
    hostile = "<script>x"
    hand = Hand(tmp_path)
    entries = [
        entry.model_copy(update={"label": entry.label.replace("randaugment", hostile)})
        for entry in hand.study.entries
    ]
    hand.study = hand.study.model_copy(update={"entries": tuple(entries)})
    for entry in entries:
        choices = {"magnitude": 5} if entry.ranges else {}
        hand.finals(entry.label, 0.5, 0.6, 0.4, choices=choices)
    results = hand.results()
    page = Page(results._repr_html_())
    tags = [tag for tag, _ in page.tags]
    assert "script" not in tags and hostile in page.text and tags.count("img") == 1
    assert tags.count("tr") == len(entries) + 2  # names of the columns, and of the index
    figure = results.plot()
    (axes,) = figure.axes
    assert axes.get_xscale() == "log" and figure._repr_png_()[:4] == b"\x89PNG"


def test_without_a_cost_there_is_nothing_to_plot(tmp_path):
    with pytest.raises(UserError, match="no entry has a cost yet"):
        Hand(tmp_path).results().plot()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two classes of twelve grey pictures of 16 x 16, told apart by their brightness."""
    root = tmp_path_factory.mktemp("photos")
    for name, level in (("dark", 40), ("light", 200)):
        (root / name).mkdir()
        for i in range(12):
            pixels = (level + i + torch.arange(256) % 16).to(torch.uint8).view(16, 16)
            Image.fromarray(pixels.numpy()).save(root / name / f"{i}.png")
    return root


@pytest.fixture
def proposed(photos, tmp_path, monkeypatch):
    """The study that a comparison of the photographs would run, and its options."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(init, "calibrate", lambda study: None)
    monkeypatch.setattr(init, "forecast_table", lambda *_: "")
    monkeypatch.setattr(python, "run", lambda study, **options: (study, options))
    return lambda *methods, **options: autoaug_ray.compare(photos, *methods, **options)


def test_a_comparison_is_of_what_init_proposes_for_a_folder(proposed, photos):
    whole, options = proposed(out="o")
    path = Path("runs", f"{photos.name}.yaml")
    assert whole == Study.from_yaml(path) and options == {"out": "o", "resume": False}
    assert whole.name == photos.name and whole.dataset.root == str(photos)
    some, _ = proposed(["bilevel", "mixup"], seeds=2, epochs=3, flip="vertical")
    assert [e.label for e in some.entries] == ["none", "bilevel", "bilevel learn:off", "mixup"]
    assert (some.seeds, some.train.epochs) == ((0, 1), 3)
    assert some.entry("bilevel").first_method.group == whole.entry("bilevel").first_method.group
    assert some.entry("mixup").first_method.then.flip == "vertical"
    assert some.entry("mixup").first_method.then.crop == 4  # its own default
    own, _ = proposed({"mine": {"method": "predefined", "translate": 2}})
    assert own.entry("mine").first_method.translate == 2 and own.reference == "none"
    with pytest.raises(UserError, match=r"unknown method 'bilvel' \(did you mean bilevel\?\)"):
        proposed(["bilvel"])


def test_a_comparison_that_goes_on_has_the_proposal_that_is_there(proposed, photos):
    proposed()
    path = Path("runs", f"{photos.name}.yaml")
    path.write_text(path.read_text().replace("seeds: 5", "seeds: 4"))
    assert len(proposed(resume=True)[0].seeds) == 4
    assert len(proposed()[0].seeds) == 5


def test_a_comparison_of_no_folder_says_so(proposed):
    with pytest.raises(UserError, match="is not a folder"):
        autoaug_ray.compare("gone")


def test_what_the_package_offers_is_there():
    assert set(autoaug_ray.__all__) <= set(dir(autoaug_ray))
    for name in autoaug_ray.__all__:
        assert getattr(autoaug_ray, name).__name__ in (name, "load")
