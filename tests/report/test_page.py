"""The page in a real browser: it works without a network, its parts are linked, and no text of a row acts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.report.page import json_text, policy
from engine.report.write import MOST_BYTES, write_report
from engine.store import Store
from tests.conftest import EXAMPLE_POOL, Recorder, write_jsonl
from tests.runs import config_for, make_tiny_encoder, run_local

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
HOSTILE = [
    "<script>window.hacked = 1</script>",
    "</script><script>window.hacked = 2</script>",
    "<!-- <script> a comment that never ends",
    '<img src=x onerror="window.hacked = 3"><svg onload="window.hacked = 4">',
    "\u202egnp.exe\u202c \u200f\u2067 right to left \u2028 and a line separator",
    "{{ 7 * 7 }} ${7 * 7} javascript:window.hacked=5 &lt;b&gt; ]]>",
    '"><iframe src="https://example.com/a"></iframe><link rel=stylesheet href="https://example.com/b">',
]
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 900}
TIMEOUT_MS = 240_000


def test_data_in_a_script_element_cannot_end_it() -> None:
    text = json_text({"rows": HOSTILE})
    assert not re.search("[<>&\u2028\u2029]", text) and json.loads(text)["rows"] == HOSTILE
    with pytest.raises(ValueError, match="JSON compliant"):
        json_text([float("nan")])


def test_the_policy_lets_nothing_in() -> None:
    rules = dict(rule.strip().split(" ", 1) for rule in policy(["a()"]).split(";"))
    assert rules["default-src"] == "'none'" and "unsafe-inline" not in rules["script-src"]
    assert rules["img-src"] == "data:" and "connect-src" not in rules  # default-src holds for connections


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a pool with hostile texts and sources, and one row of a megabyte."""
    folder = tmp_path_factory.mktemp("hostile")
    lines = [json.loads(line) for line in EXAMPLE_POOL.read_bytes().splitlines()[:30] if b'"instruction"' in line]
    rows = [
        {"instruction": f"{text} question q{k}x", "output": f"{text} answer " * (k + 1), "source": text}
        for k in range(7)
        for text in HOSTILE
    ]
    rows += [{"instruction": "a large row", "output": "large " * 170_000, "source": "large"}]
    rows += [{**line, "source": "usual"} for line in lines]
    write_jsonl(folder / "pool.jsonl", rows)
    make_tiny_encoder(folder / "encoder", [" ".join(map(str, row.values()))[:2000] for row in rows])
    run_local(config_for(folder / "pool.jsonl", folder / "run", "budget=20"), Recorder())
    write_report(Store(folder / "run"), Store(folder / "run" / "report"), pictures=False)
    return folder / "run" / "report" / "index.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"no {CHROMIUM}: the page is not looked at in a browser")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS, timeout=TIMEOUT_MS)
        yield started
        started.close()


class Opened:
    """A page in a browser without a network, and what it complained of."""

    def __init__(self, browser: Any, page: Path, size: dict[str, int], scheme: str) -> None:
        self.context = browser.new_context(viewport=size, color_scheme=scheme, offline=True)
        self.context.set_default_timeout(TIMEOUT_MS)
        self.tab = self.context.new_page()
        self.complaints: list[str] = []
        self.tab.on("console", lambda message: self.complaints.append(message.text))
        self.tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.tab.on("request", lambda request: self.complaints.extend(outside(request.url)))
        self.tab.goto(page.as_uri())
        self.tab.wait_for_selector("body[data-ready]")

    def rows(self) -> int:
        """Rows that the table says it shows."""
        return int(self.tab.inner_text("#count").split(" of ")[0].replace(",", ""))

    def wait_rows(self, what: str) -> int:
        self.tab.wait_for_function(f"parseInt(document.getElementById('count').textContent) {what}")
        return self.rows()


def outside(url: str) -> list[str]:
    return [] if url.startswith(("file:", "data:", "blob:")) else [url]


@pytest.mark.slow
def test_in_a_browser(page: Path, browser: Any) -> None:
    assert page.stat().st_size < MOST_BYTES
    opened = Opened(browser, page, DESK, "light")
    tab = opened.tab
    everything = opened.rows()

    # every chart is drawn
    places = tab.eval_on_selector_all(".chart", "all => all.map(one => one.querySelectorAll('svg path').length)")
    assert len(places) > 12 and all(places)

    # nothing in a row acts: no script ran, no element came of a text
    assert tab.evaluate("window.hacked === undefined")
    assert tab.eval_on_selector_all("img, iframe, link, object, embed", "all => all.length") == 0
    assert tab.eval_on_selector_all("script", "all => all.length") == 4  # the data and three of ours

    # search finds a row, a click shows its text as it is
    tab.fill("#search", "onerror= q3x")
    assert opened.wait_rows(f"< {everything}") == 1
    tab.click(".tabulator-row")
    assert HOSTILE[3] in tab.inner_text(".detail .text >> nth=0")
    assert "why" in tab.inner_text(".detail .facts")
    tab.fill("#search", "")
    opened.wait_rows(f"== {everything}")
    tab.select_option("#in-out", "in")
    assert opened.wait_rows(f"< {everything}") == 20
    tab.select_option("#in-out", "")
    opened.wait_rows(f"== {everything}")

    # a rectangle on the map filters the table to the dots inside it
    tab.select_option("#colour", "map-cluster")
    area = tab.locator("#map svg").bounding_box()
    tab.locator("#map").scroll_into_view_if_needed()
    area = tab.locator("#map svg").bounding_box()
    tab.mouse.move(area["x"] + 10, area["y"] + 10)
    tab.mouse.down()
    tab.mouse.move(area["x"] + area["width"] / 2, area["y"] + area["height"] - 10, steps=4)
    tab.mouse.up()
    inside = opened.wait_rows(f"< {everything}")
    assert 0 < inside < everything
    bars = tab.eval_on_selector_all("#linked path[aria-roledescription='bar']", "all => all.length")
    assert bars > 0
    tab.click("#clear")
    assert opened.wait_rows(f"== {everything}") == everything
    assert opened.complaints == []

    # on paper there are no controls
    tab.emulate_media(media="print")
    assert not tab.is_visible("nav") and not tab.is_visible("#search")
    opened.context.close()


@pytest.mark.slow
def test_on_a_phone_in_the_dark(page: Path, browser: Any) -> None:
    opened = Opened(browser, page, PHONE, "dark")
    tab = opened.tab
    assert tab.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    widths = tab.eval_on_selector_all(".chart svg", "all => all.map(one => one.getBoundingClientRect().width)")
    assert max(widths) <= PHONE["width"] and min(widths) > 200
    back, text = (tab.evaluate(f"getComputedStyle(document.body).{name}") for name in ("backgroundColor", "color"))
    light, dark = (sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (text, back))
    assert light > 600 and dark < 120
    assert opened.complaints == []
    opened.context.close()
