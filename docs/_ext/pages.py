"""What the site does to its pages: links, order of the gallery, pictures of tables.

The pages of the guide are Markdown that is read beside the code too, so their links go
to files: an example, the results of the benchmarks. On the site these have pages.
"""

import re
from pathlib import Path

import bars

ROOT = Path(__file__).parents[2]

# From simple to special, which is how the gallery is read.
EXAMPLES = [
    "plot_first_fit.py",
    "plot_pca.py",
    "plot_choose_sigma.py",
    "plot_denoise.py",
    "plot_missing_values.py",
    "plot_outliers.py",
    "plot_anomalies.py",
    "plot_pipeline.py",
    "plot_images.py",
    "plot_noise_models.py",
    "plot_history.py",
    "plot_own_network.py",
]

LINKS = [
    (r"\]\(\.\./examples\)", r"](auto_examples/index.rst)"),
    (r"\]\((?:\.\./)?examples/(plot_\w+)\.py\)", r"](auto_examples/\1.rst)"),
    (r"\]\((?:\.\./)?benchmarks/RESULTS\.md\)", r"](benchmarks.md)"),
    (r"\]\((?:\.\./)?CHANGELOG\.md\)", r"](changelog.md)"),
    (r"\]\((?:\.\./)?CONTRIBUTING\.md\)", r"](contributing.md)"),
    (r"\]\((?:\.\./)?SECURITY\.md\)", r"](security.md)"),
    (r"\]\(docs/", r"]("),
]


def gallery_order(name):
    """Place of an example in the gallery; a new one must have a place."""
    return EXAMPLES.index(name)


def link_to_pages(text):
    """Markdown whose links to files of the repository go to pages of the site."""
    for pattern, page in LINKS:
        text = re.sub(pattern, page, text)
    return text


def _on_source_read(app, docname, source):
    source[0] = link_to_pages(source[0])


def _on_include_read(app, relative_path, parent_docname, content):
    content[0] = link_to_pages(content[0])


def _draw_bars(app):
    bars.draw(ROOT / "benchmarks" / "RESULTS.md", Path(app.srcdir) / "_static")


def setup(app):
    """Register with Sphinx."""
    app.connect("builder-inited", _draw_bars)
    app.connect("source-read", _on_source_read)
    app.connect("include-read", _on_include_read)
    return {"parallel_read_safe": True}
