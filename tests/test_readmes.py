"""What the READMEs name exists: files, headings, modules, methods, datasets, studies."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import rooms

from autoaug_ray import config
from autoaug_ray.bench.__main__ import BENCHES
from autoaug_ray.data import SOURCES
from autoaug_ray.methods import METHODS

ROOT = Path(__file__).parent.parent
READMES = [
    ROOT / "README.md",
    *(p for top in ("autoaug_ray", "clusters", "search_spaces", "tests")
      for p in sorted((ROOT / top).rglob("README.md"))),
]  # fmt: skip
STUDIES = sorted((ROOT / "search_spaces").glob("*.yaml"))
OTHERS = [*ROOT.glob("clusters/*.yaml"), *ROOT.glob("clusters/*.sh")]
TEXTS = [*READMES, *STUDIES, *sorted(OTHERS), *ROOT.glob("autoaug_ray/**/MODEL_CARD.md")]
LONGEST = 220
"""Lines of README.md: what a newcomer finishes."""


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def without_code(text):
    """Fenced blocks hold no links and no headings."""
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text):
    """The names by which GitHub links to a text's headings."""
    headings = re.findall(r"^#+ (.*)$", without_code(text), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def broken_links(path):
    """Relative links to files, or to headings, that are not there."""
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(path.read_text())):
        file, _, anchor = link.partition("#")
        if re.match(r"\w+:", link):
            continue
        target = (path.parent / file).resolve() if file else path
        if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            yield link


def missing_names(text):
    """Files and modules of this repository that a text names and that are not there."""
    folders = "autoaug_ray|clusters|search_spaces|tests"
    for file in re.findall(rf"(?<![\w/.])(?:{folders})/[\w./-]*\.\w+", text):
        if not (ROOT / file).exists():
            yield file
    for module in re.findall(r"(?:python -m|from) (autoaug_ray(?:\.\w+)+)", text):
        if find_spec(module) is None:
            yield module
    for bench in re.findall(r"python -m autoaug_ray\.bench ([a-z]+)", text):
        if bench not in BENCHES:
            yield bench


@pytest.mark.parametrize("path", READMES, ids=name_of)
def test_links_lead_somewhere(path):
    assert list(broken_links(path)) == []


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_files_and_modules_that_a_text_names_exist(path):
    assert list(missing_names(path.read_text())) == []


def test_broken_links_and_missing_names_are_seen(tmp_path):
    page = tmp_path / "README.md"
    page.write_text("# A b, c\n[1](README.md#a-b-c) [2](#b) [3](gone.md) [4](https://x.y/z)\n")
    assert list(broken_links(page)) == ["#b", "gone.md"]
    text = "`python -m autoaug_ray.bench slow`, `from autoaug_ray.plan import x`, tests/gone.py"
    assert list(missing_names(text)) == ["tests/gone.py", "autoaug_ray.plan", "slow"]


@pytest.mark.parametrize("path", READMES, ids=name_of)
def test_a_study_in_a_readme_is_one(path, tmp_path):
    for text in re.findall(r"^```yaml\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL):
        if "dataset:" in text and "methods:" in text:
            study = tmp_path / "study.yaml"
            study.write_text(text)
            assert config.load(study)


@pytest.mark.parametrize("path", READMES[1:], ids=name_of)
def test_the_readme_of_a_room_begins_with_a_sentence(path):
    heading, first, *_ = path.read_text().split("\n\n")
    assert re.fullmatch(r"# .+", heading)
    assert re.match(r"[A-Z][^|]*[.:]$", first, flags=re.DOTALL)


def test_the_readme_can_be_finished():
    assert len((ROOT / "README.md").read_text().splitlines()) <= LONGEST


def test_readmes_list_every_room_method_dataset_benchmark_and_study():
    def missing(readme, names):
        text = (ROOT / readme).read_text()
        return [name for name in names if name not in text]

    files = [p.name if p.suffix else f"{p.name}/" for p in rooms.ROOT.iterdir()]
    named = [f for f in files if f.removesuffix(".py").removesuffix("/") in rooms.BELOW]
    assert len(named) == len(rooms.BELOW) and missing("autoaug_ray/README.md", named) == []
    assert missing("README.md", [f"`{name}`" for name in METHODS]) == []
    assert missing("autoaug_ray/methods/README.md", [f"`{name}`" for name in METHODS]) == []
    assert missing("autoaug_ray/data/README.md", [f"`{name}`" for name in SOURCES]) == []
    assert missing("autoaug_ray/bench/README.md", [f"`{name}`" for name in BENCHES]) == []
    assert missing("search_spaces/README.md", [f"]({path.name})" for path in STUDIES]) == []


@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.stem)
def test_the_header_of_a_study_states_command_and_cost(path):
    header = path.read_text().split("\n\n")[0]
    alone = path.stem == "quickstart"
    assert f"python run_all.py{'' if alone else f' {name_of(path)}'}\n" in header + "\n" or (
        f"python run_all.py {name_of(path)} " in header
    )
    assert "# Cost: " in header and re.search(r"# (Result|Expected)\b", header)
