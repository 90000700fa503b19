"""The site can be built, leads nowhere that is not there, and asks nobody else for anything."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from doc_reader import ROOT

SETTINGS = yaml.safe_load((ROOT / "mkdocs.yml").read_text())


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("site")
    shutil.copy(ROOT / "mkdocs.yml", directory)
    shutil.copytree(ROOT / "docs", directory / "docs")
    words = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    built = subprocess.run(words, cwd=directory, capture_output=True, text=True, timeout=120)
    assert built.returncode == 0, built.stdout + built.stderr
    return directory / "site"


@dataclass
class Page(HTMLParser):
    """What a browser would ask for, and where one can go."""

    ids: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = {name: value or "" for name, value in attrs}
        self.ids |= {named[name] for name in ("id", "name") if name in named}
        if tag == "a" and "href" in named:
            self.links.append(named["href"])
        elif tag == "link" and named.get("rel") != "canonical" and "href" in named:
            self.loaded.append(named["href"])
        elif "src" in named:
            self.loaded.append(named["src"])


def read(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text())
    return page


def pages_of(nav: object) -> set[str]:
    if isinstance(nav, str):
        return {nav}
    parts = nav.values() if isinstance(nav, dict) else nav
    assert not isinstance(parts, str)
    return {name for part in parts for name in pages_of(part)}  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.req("OPS-5")
def test_every_link_and_anchor_of_the_site_leads_somewhere(site: Path) -> None:
    pages = {path: read(path) for path in site.rglob("index.html")}
    lost = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            is_there = target.exists()
            if is_there and parts.fragment and target in pages:
                is_there = unquote(parts.fragment) in pages[target].ids
            if not is_there:
                lost.append(f"{path.relative_to(site)} → {link}")
    assert len(pages) >= len(pages_of(SETTINGS["nav"]))
    assert not lost


@pytest.mark.slow
@pytest.mark.req("OPS-5")
def test_a_page_of_the_site_loads_nothing_from_other_hosts(site: Path) -> None:
    asked = {link for path in site.rglob("*.html") for link in read(path).loaded if urlsplit(link).netloc}
    assert not asked


@pytest.mark.req("OPS-5")
def test_every_page_has_its_place_in_the_site() -> None:
    assert pages_of(SETTINGS["nav"]) == {path.name for path in (ROOT / "docs").glob("*.md")}
    assert SETTINGS["strict"] is True
