"""The documentation is built strictly, needs nothing from elsewhere to be read, and shows what it should."""

from __future__ import annotations

import base64
import functools
import html
import http.server
import json
import math
import re
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import FunctionType

import nbformat
import pytest
import torch
from browser import CHROMIUM, Browser
from conftest import ROOT
from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort
from onnxruntime import InferenceSession
from test_examples import TUTORIALS
from test_readme import blocks

import inference
import layers
import likelihoods
import moments
import training
from images import load_data

DOCS = ROOT / "docs"
CIRCLE = [(math.sin(2 * math.pi * t / 40), math.cos(2 * math.pi * t / 40)) for t in range(41)]
DRAWINGS = {
    "1": [[(0.5, 0.15), (0.5, 0.85)]],
    "7": [[(0.25, 0.2), (0.72, 0.2), (0.45, 0.85)]],
    "0": [[(0.5 + 0.2 * x, 0.5 + 0.32 * y) for x, y in CIRCLE]],
    "unsure": [[(0.5 + 0.38 * math.sin(1.7 * t), 0.5 + 0.38 * math.sin(2.3 * t + 1)) for t in range(30)]],
}


class Page(HTMLParser):
    """What a page loads, links to, and says.

    Args:
        path: of the page.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.tags: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.tags.append(tag)
        self.ids.add(values.get("id", ""))
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag != "a":
            self.loads += [values[name] for name in ("src", "href") if name in values]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    build(load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(folder)))
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Page]:
    return {path.relative_to(site).as_posix(): Page(path) for path in site.rglob("*.html") if path.name != "404.html"}


def test_every_page_can_be_read_without_a_network(site: Path, pages: dict[str, Page]) -> None:
    assert len(pages) >= 28
    for name, page in pages.items():
        assert len(page.loads) > 5
        for place in page.loads:
            assert (site / name).parent.joinpath(place.split("#")[0].split("?")[0]).exists(), (name, place)


def test_links_lead_to_places_that_exist(site: Path, pages: dict[str, Page]) -> None:
    """Also those into pages that lie elsewhere in the repository, whose links mkdocs sees rewritten."""
    checked = 0
    for name, page in pages.items():
        for link in page.links:
            if not re.match(r"\w+:", link):
                target, _, anchor = link.partition("#")
                path = (site / name).parent.joinpath(target).resolve() if target else site / name
                assert path.exists(), (name, link)
                if anchor and path.suffix == ".html":
                    assert anchor in pages[path.relative_to(site).as_posix()].ids | {"__top"}, (name, link)
                checked += 1
    assert checked > 1000


def test_formulas_are_drawn_by_the_browser_itself(site: Path, pages: dict[str, Page]) -> None:
    text = re.sub(r"`[^`]*`", "", (DOCS / "concepts.md").read_text(encoding="utf-8"))
    formulas = re.findall(r"\$\$.+?\$\$|\$.+?\$", text, re.DOTALL)
    assert len(formulas) > 30 and pages["concepts.html"].tags.count("math") == len(formulas)
    for path in site.rglob("*.html"):
        assert "arithmatex" not in path.read_text(encoding="utf-8"), path


def test_the_reference_has_every_public_function_and_class(pages: dict[str, Page]) -> None:
    for room in (inference, layers, likelihoods, moments, training):
        ids = pages[f"api/{room.__name__}.html"].ids
        public = {
            name: value for name in room.__all__ if isinstance(value := getattr(room, name), (type, FunctionType))
        }
        assert len(public) > 5
        for name, value in public.items():
            assert {f"{room.__name__}.{name}", f"{value.__module__}.{name}"} & ids, name


def test_the_page_on_one_pass_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (snippet,) = blocks("python", (DOCS / "one-pass.md").read_text(encoding="utf-8"))
    exec(compile(snippet, "one-pass.md", "exec"), {})
    assert capsys.readouterr().out.startswith("torch.Size([16, 10])")


def test_the_tutorials_are_shown_with_what_they_printed_and_drew(site: Path) -> None:
    def text(page: str) -> str:
        plain = re.sub("<[^>]+>", "", (site / page).read_text(encoding="utf-8"))
        return html.unescape(plain)

    assert (ROOT / "examples" / "regression.py").read_text(encoding="utf-8").strip() in text("tutorials.html")
    for name in TUTORIALS:
        shown, pictures = text(f"{name}.html"), 0
        for cell in nbformat.read(ROOT / "examples" / f"{name}.ipynb", as_version=4).cells:
            assert cell.cell_type == "markdown" or cell.source in shown, cell.source
            for output in cell.get("outputs", []):
                assert output.get("text", "") in shown
                if picture := output.get("data", {}).get("image/png"):
                    assert (site / "images" / f"{name}_{pictures}.png").read_bytes() == base64.b64decode(picture)
                    pictures += 1
        assert pictures > 0


def test_the_gallery_shows_every_picture() -> None:
    pictures = {path.name for path in (DOCS / "images").iterdir()} - {"digit.png"}
    assert set(re.findall(r"images/([\w.]+)", (DOCS / "gallery.md").read_text(encoding="utf-8"))) == pictures


def test_a_link_that_leads_nowhere_stops_the_build(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("[nowhere](absent.md)")
    (tmp_path / "docs" / "hooks.py").write_text((DOCS / "hooks.py").read_text())
    pages = ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "experiments/README.md", "benchmarks/README.md")
    for name in (*pages, *(f"examples/{name}.ipynb" for name in TUTORIALS)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"cells": []}' if name.endswith("ipynb") else "# A page")
    (tmp_path / "mkdocs.yml").write_text("site_name: x\nhooks: [docs/hooks.py]\nexclude_docs: hooks.py\n")
    with pytest.raises(Abort):
        build(load_config(str(tmp_path / "mkdocs.yml"), strict=True, site_dir=str(tmp_path / "site")))


def test_the_network_that_answers_drawings_knows_digits_and_is_unsure_of_pieces_of_them() -> None:
    threshold = json.loads((DOCS / "draw" / "network.json").read_text())["threshold"]
    test = load_data("MNIST5k", "data", valid_size=0.1, seed=0).test
    assert isinstance(test.images, torch.Tensor)
    session = InferenceSession(str(DOCS / "draw" / "network.onnx"))

    def answers(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        probs, epistemic, aleatoric = map(torch.from_numpy, session.run(None, {"images": images.numpy()}))
        return probs.argmax(1), epistemic + aleatoric <= threshold

    labels, sure = answers(test.images / 255)
    assert (labels == test.labels)[sure].float().mean() > 0.99 and sure.float().mean() > 0.9
    left, right = (test.images / 255).split(16, 3)
    assert answers(torch.cat([right, left], 3))[1].float().mean() < 0.05


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    browser = Browser(tmp_path)
    yield browser
    browser.close()


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.skipif(
    not (CHROMIUM and (DOCS / "draw" / "ort").exists()), reason="needs Chromium, and what `make docs` fetches"
)
def test_a_drawn_one_and_seven_are_named_and_a_scribble_is_unsure(browser: Browser, address: str) -> None:
    browser.call("Page.navigate", url=f"{address}/draw.html")
    browser.wait("document.querySelector('.answer')?.textContent == 'Draw a digit.'")
    for answer, strokes in DRAWINGS.items():
        browser.evaluate("document.querySelector('.draw button').click()")
        browser.draw(".draw canvas", strokes)
        browser.wait("document.querySelector('.detail').textContent")
        assert browser.text(".answer") == answer, browser.text(".detail")


@pytest.mark.skipif(not CHROMIUM, reason="needs Chromium")
def test_no_page_is_wider_than_a_telephone(browser: Browser, address: str) -> None:
    """Code, tables and formulas scroll by themselves; nothing else leaves the screen."""
    browser.call("Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=1, mobile=True)
    for name in ("concepts", "results", "first_network", "gallery", "api/layers"):
        browser.call("Page.navigate", url=f"{address}/{name}.html")
        browser.wait(f"location.pathname == '/{name}.html' && document.readyState == 'complete'")
        assert browser.evaluate("document.documentElement.scrollWidth") == 390, name
