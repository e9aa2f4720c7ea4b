"""The built site: every internal link leads somewhere, every picture is there."""

import os
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

SITE = os.environ.get("SITE")
pytestmark = [
    pytest.mark.docs,
    pytest.mark.skipif(not SITE, reason="needs the built site, in the folder SITE"),
]


class Page(HTMLParser):
    """Links, pictures and anchors of a page."""

    SOURCES = {
        "a": ["href"],
        "link": ["href"],
        "img": ["src"],
        "script": ["src"],
        "source": ["src", "srcset"],
        "object": ["data"],
    }

    def __init__(self, path):
        super().__init__()
        # Without an anchor a link goes to the page, and "#" to its top.
        self.links, self.anchors = [], {""}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name in ("id", "name"):
                self.anchors.add(value)
            if name in self.SOURCES.get(tag, ()):
                self.links.append(value or "")


@pytest.fixture(scope="module")
def pages():
    # Pages in _static are templates of the theme.
    return {
        path.resolve(): Page(path)
        for path in Path(SITE).rglob("*.html")
        if "_static" not in path.parts
    }


def test_there_is_a_site(pages):
    names = {path.name for path in pages}
    assert {"index.html", "getting_started.html", "api.html"} <= names
    assert len(names) > 40


def test_no_internal_link_is_dead(pages):
    dead = set()
    for path, page in pages.items():
        for link in filter(None, page.links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:  # external
                continue
            file = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not file.is_file():
                dead.add(f"{path.name}: {link}")
            elif file in pages and unquote(parts.fragment) not in pages[file].anchors:
                dead.add(f"{path.name}: {link} has no such place")
    assert not dead, "\n".join(sorted(dead))


def test_every_example_has_run_and_has_a_picture(pages):
    for example in Path(__file__).parents[1].glob("examples/plot_*.py"):
        path = Path(SITE).resolve() / "auto_examples" / f"{example.stem}.html"
        picture = f"sphx_glr_{example.stem}"
        assert any(picture in link for link in pages[path].links), example.name


def test_every_public_name_has_a_page(pages):
    import sklearn_sigmavae
    from sklearn_sigmavae import metrics, networks, noise

    modules = (sklearn_sigmavae, metrics, networks, noise)
    documented = set().union(*(page.anchors for page in pages.values()))
    for module in modules:
        for name in module.__all__:
            if not callable(getattr(module, name)):
                continue
            places = {f"{m.__name__}.{name}" for m in modules if hasattr(m, name)}
            assert places & documented, f"{name} is on no page"


def test_the_question_mark_of_an_estimator_leads_to_its_page():
    from sklearn_sigmavae import SigmaVAE

    page = SigmaVAE()._get_doc_link().partition("/stable/")[2]
    assert (Path(SITE) / page).is_file()
