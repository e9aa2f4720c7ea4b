"""The built site: every internal link leads somewhere, every picture is there."""

import os
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

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
        attrs = dict(attrs)
        self.anchors |= {attrs[name] for name in ("id", "name") if attrs.get(name)}
        for name in self.SOURCES.get(tag, ()):
            if attrs.get(name) is not None:
                self.links.append(attrs[name])


@pytest.fixture(scope="module")
def pages():
    # What lies in _static are pictures, scripts and templates of the theme.
    return {
        path.resolve(): Page(path)
        for path in Path(SITE).rglob("*.html")
        if "_static" not in path.parts
    }


def is_external(link):
    parts = urlsplit(link)
    return bool(parts.scheme or parts.netloc)


def test_there_is_a_site(pages):
    names = {path.name for path in pages}
    assert {"index.html", "getting_started.html", "api.html"} <= names
    assert len(names) > 40


def test_no_internal_link_is_dead(pages):
    dead = []
    for path, page in pages.items():
        for link in filter(None, page.links):
            if is_external(link):
                continue
            file, anchor = urldefrag(link)
            target = (path.parent / unquote(urlsplit(file).path)).resolve()
            target = path if not file else target
            if not target.is_file():
                dead.append(f"{path.name}: {link}")
            elif target in pages and unquote(anchor) not in pages[target].anchors:
                dead.append(f"{path.name}: {link} has no such place")
    assert not dead, "\n".join(sorted(set(dead)))


def test_every_example_has_run_and_has_a_picture(pages):
    examples = Path(__file__).parents[1].glob("examples/plot_*.py")
    for example in examples:
        path = Path(SITE).resolve() / "auto_examples" / f"{example.stem}.html"
        pictures = [
            link for link in pages[path].links if f"sphx_glr_{example.stem}" in link
        ]
        assert pictures, f"{example.name} has no picture"


def test_every_public_name_has_a_page(pages):
    import sklearn_sigmavae
    from sklearn_sigmavae import metrics, networks, noise

    modules = (sklearn_sigmavae, metrics, networks, noise)
    documented = set().union(*(page.anchors for page in pages.values()))
    for module in modules:
        for name in module.__all__:
            value = getattr(module, name)
            if callable(value):
                places = {f"{m.__name__}.{name}" for m in modules if hasattr(m, name)}
                assert places & documented, f"{name} is in no page"


def test_the_question_mark_of_an_estimator_leads_to_its_page():
    from sklearn_sigmavae import SigmaVAE

    page = SigmaVAE()._get_doc_link().partition("/stable/")[2]
    assert (Path(SITE) / page).is_file()
