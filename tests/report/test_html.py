"""The page as its reader has it: opened from file:// in a browser, and clicked."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hand import Hand
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.support.ui import WebDriverWait

from autoaug_ray.report import html
from autoaug_ray.report.write import write

MISSING = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
browser_needed = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
HOSTILE = "</script><b id='planted'>{{ 7 * 7 }}"


def study(root: Path) -> Hand:
    published = {"measure": "micro", "source": HOSTILE, "entries": {"bilevel": {"accuracy": 80.5}}}
    hand = Hand(root, published=published)
    hand.finals("none", 0.60, 0.61, 0.62)
    hand.finals("randaugment", 0.70, 0.72, 0.71, seconds=(15.0,), choices={"magnitude": 9})
    more = {"log": {"std/shear": 0.25}}
    hand.finals("bilevel", 0.80, 0.82, 0.81, seconds=(40.0,), more=more)
    hand.finals("bilevel learn:off", 0.50, 0.51, 0.52, seconds=(20.0,))
    hand.run("bilevel", seed=7, error=HOSTILE)
    for seed in (0, 1, 2):
        place = hand.folder.policy("bilevel", seed)
        place.mkdir(parents=True)
        (place / "policy.pt").touch()
    return hand


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    hand = study(tmp_path_factory.mktemp("study"))
    path = write(hand.results())
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1300,1000"):
        options.add_argument(argument)
    out = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    out.get(path.as_uri())
    WebDriverWait(out, 30).until(
        lambda d: d.execute_script("return document.querySelectorAll('#plot .point').length > 4")
    )
    yield out
    out.quit()


def entries(driver: Any) -> list[str]:
    """The entries of the first table, in the order in which they are shown."""
    return driver.execute_script(
        "return [...document.querySelector('table.sortable').tBodies[0].rows]"
        ".filter(r => r.offsetHeight > 0).map(r => r.dataset.entry)"
    )


def drawn(driver: Any) -> set[str]:
    return set(
        driver.execute_script(
            "return plot.data.filter(t => t.visible === true && t.meta).map(t => t.meta)"
        )
    )


def names(driver: Any) -> dict[str, Any]:
    """The names beside the points of the figure, by label."""
    found = driver.find_elements("css selector", "#plot .annotation-text-g")
    return {name.text: name for name in found if name.text}


@contextmanager
def window(driver: Any, width: int) -> Iterator[None]:
    size = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    WebDriverWait(driver, 5).until(lambda d: d.execute_script("return plot.clientWidth") < width)
    driver.execute_script("return new Promise(done => setTimeout(done, 400))")  # it is drawn anew
    yield
    driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


ORDER = ["none", "randaugment", "bilevel", "bilevel learn:off"]


@browser_needed
def test_a_click_on_a_heading_sorts_and_controls_stay(driver: Any) -> None:
    assert entries(driver) == ORDER
    head = driver.find_elements("css selector", "table.sortable th")[1]
    head.click()
    assert entries(driver) == ORDER and head.get_attribute("aria-sort") == "ascending"
    head.click()
    assert entries(driver) == ["bilevel", "bilevel learn:off", "randaugment", "none"]
    driver.find_elements("css selector", "table.sortable th")[0].click()
    assert entries(driver) == ORDER


def unfold(driver: Any) -> None:
    driver.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")


@browser_needed
def test_an_entry_is_hidden_in_tables_and_figures(driver: Any) -> None:
    unfold(driver)
    bar = driver.find_element("css selector", 'svg [data-entry="bilevel"]')
    box = driver.find_element("css selector", '.filters input[value="bilevel"]')
    section = driver.find_element("css selector", 'section[data-entry="bilevel"]')
    assert drawn(driver) == set(names(driver)) == set(ORDER)
    assert section.is_displayed() and bar.is_displayed()
    box.click()
    left = [label for label in ORDER if label != "bilevel"]
    assert entries(driver) == left and drawn(driver) == set(left)
    assert set(names(driver)) == set(left)
    assert not section.is_displayed() and not bar.is_displayed()
    assert "3 of 4 entries are shown" in driver.find_element("css selector", ".filters").text
    driver.find_element("css selector", '.filters button[data-all=""]').click()
    assert entries(driver) == [] and drawn(driver) == set()
    driver.find_element("css selector", '.filters button[data-all="yes"]').click()
    assert entries(driver) == ORDER and drawn(driver) == set(ORDER) and box.is_selected()


@browser_needed
def test_a_click_on_a_name_in_the_figure_hides_it(driver: Any) -> None:
    unfold(driver)
    ActionChains(driver).move_to_element(names(driver)["randaugment"]).click().perform()
    WebDriverWait(driver, 5).until(lambda d: "randaugment" not in drawn(d))
    assert "randaugment" not in entries(driver)
    box = driver.find_element("css selector", '.filters input[value="randaugment"]')
    assert not box.is_selected()
    box.click()
    assert entries(driver) == ORDER


@browser_needed
@pytest.mark.parametrize("width", [390, 1300])
def test_names_stand_apart_beside_their_points(driver: Any, width: int) -> None:
    with window(driver, width):
        boxes = {label: name.rect for label, name in names(driver).items()}
        frame = driver.find_element("css selector", "#plot .nsewdrag").rect
    assert set(boxes) == set(ORDER)
    for label, a in boxes.items():
        assert frame["x"] - 4 <= a["x"], label
        assert a["x"] + a["width"] <= frame["x"] + frame["width"] + 4, label
        for other, b in boxes.items():
            if other != label:
                beside = a["x"] + a["width"] <= b["x"] or b["x"] + b["width"] <= a["x"]
                over = a["y"] + a["height"] <= b["y"] or b["y"] + b["height"] <= a["y"]
                assert beside or over, (label, other)


@browser_needed
def test_the_cost_is_seen_on_a_telephone(driver: Any) -> None:
    with window(driver, 390):
        right = driver.execute_script(
            "const i = [...document.querySelectorAll('table.sortable th')]"
            ".findIndex(h => h.textContent.startsWith('Relative cost'));"
            "return [...document.querySelector('table.sortable').rows]"
            ".map(r => r.cells[i].getBoundingClientRect().right)"
        )
        fits = driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    assert len(right) == 5 and max(right) <= 390 and fits


@browser_needed
def test_in_the_dark_text_stands_out(driver: Any) -> None:
    """Text against what lies behind it, by WCAG's contrast ratio, of which it asks for 4.5."""

    def contrast(selector: str) -> float:
        ink, paper = driver.execute_script(
            "const e = document.querySelector(arguments[0]);"
            "let p = e; while (getComputedStyle(p).backgroundColor === 'rgba(0, 0, 0, 0)')"
            "  p = p.parentElement;"
            "return [getComputedStyle(e).color, getComputedStyle(p).backgroundColor]",
            selector,
        )

        def light(color: str) -> float:
            parts = [int(c) / 255 for c in re.findall(r"\d+", color)[:3]]
            linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
            return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

        dark, bright = sorted([light(ink), light(paper)])
        return (bright + 0.05) / (dark + 0.05)

    where = ("h1", ".headline", ".answer a", ".answer .note", "tr.control td", ".missing b")
    for scheme in ("dark", "light"):
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        assert all(contrast(selector) > 4.5 for selector in where), scheme
        turned = driver.execute_script("return getComputedStyle(plot).filter") != "none"
        assert turned == (scheme == "dark")


@browser_needed
def test_a_point_tells_its_figures(driver: Any) -> None:
    index = driver.execute_script(
        "plot.scrollIntoView({block: 'center'});"
        "return plot.data.findIndex(t => t.meta === 'bilevel' && t.text)"
    )
    point = driver.execute_script(
        "const name = plot.data[arguments[0]].name;"
        "return [...document.querySelectorAll('#plot .scatterlayer .trace')]"
        ".find(t => t.__data__[0].trace.index === arguments[0]).querySelector('.point')",
        index,
    )
    ActionChains(driver).move_to_element(point).perform()
    hover = WebDriverWait(driver, 5).until(
        lambda d: d.find_elements("css selector", "#plot .hoverlayer .hovertext")
    )
    text = " ".join(hover[0].text.replace("\u00a0", " ").split())
    for said in ("bilevel", "81.00 ± 1.00", "+20.00 [+17.52, +22.48]", "relative cost 4.00",
                 "CPU-", "seeds 0, 1, 2"):  # fmt: skip
        assert said in text, text


@browser_needed
def test_it_fetches_nothing_and_fits(driver: Any) -> None:
    names = driver.execute_script(
        "return performance.getEntriesByType('resource').map(e => e.name)"
    )
    assert [n for n in names if not n.startswith(("data:", "blob:"))] == []
    assert [e for e in driver.get_log("browser") if e["level"] == "SEVERE"] == []
    fits = "return document.documentElement.scrollWidth <= innerWidth"
    assert driver.execute_script(fits)
    driver.set_window_size(500, 1000)
    WebDriverWait(driver, 5).until(lambda d: d.execute_script(fits))
    driver.set_window_size(1300, 1000)


@browser_needed
def test_what_comes_from_the_study_is_text_in_the_browser(driver: Any) -> None:
    assert driver.find_elements("id", "planted") == []
    assert HOSTILE in driver.execute_script("return document.body.textContent")


def test_a_hostile_label_is_escaped_everywhere(tmp_path: Path) -> None:
    """No study can have such a label today; the page does not rely on it."""
    hand = study(tmp_path)
    results = hand.results()
    (*others, last) = results.entries
    hostile = replace(results, entries=(*others, replace(last, label=HOSTILE)))
    figure = html.accuracy_vs_cost(hostile)
    assert figure is not None
    traces = [t for t in figure["data"] if t.get("meta")]
    assert all("<" not in t["name"] for t in traces if "name" in t)
    assert not any("<b id" in text for t in traces for text in t.get("text", []))
    text = write(hand.results()).read_text()
    assert "<b id" not in text and "&lt;/script&gt;&lt;b id" in text


def test_what_was_learned_stands_there_with_the_way_to_load_it(tmp_path: Path) -> None:
    hand = study(tmp_path)
    text = write(hand.results()).read_text()
    assert "<td>spread of shear</td><td>0.250 ± 0.000</td>" in text
    assert "load_policy(&#34;policies/bilevel/seed-0/policy.pt&#34;)" in text
