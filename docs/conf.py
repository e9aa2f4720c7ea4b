"""How the site is built, by ``python -m tox run -e docs``."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))
os.environ.setdefault("MPLBACKEND", "Agg")

import sklearn_sigmavae  # noqa: E402

project = "sklearn-sigmavae"
author = "The sklearn-sigmavae developers"
copyright = f"2026, {author}"
version = release = sklearn_sigmavae.__version__

extensions = [
    "myst_parser",
    "numpydoc",
    "pages",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]

# Links to other projects need their inventories, and a build must not need a network.
if os.environ.get("DOCS_ONLINE"):
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "numpy": ("https://numpy.org/doc/stable", None),
        "python": ("https://docs.python.org/3", None),
        "sklearn": ("https://scikit-learn.org/stable", None),
        "skorch": ("https://skorch.readthedocs.io/en/stable", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
        "matplotlib": ("https://matplotlib.org/stable", None),
    }

# What is inherited from scikit-learn speaks of terms in its glossary.
suppress_warnings = ["ref.term"]

exclude_patterns = ["_build", "_ext", "_templates", "reproduced"]
templates_path = ["_templates"]

myst_enable_extensions = [
    "amsmath",
    "attrs_inline",
    "colon_fence",
    "deflist",
    "dollarmath",
]
myst_heading_anchors = 4

autosummary_generate = True
autodoc_typehints = "none"
toc_object_entries_show_parents = "hide"
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
# scikit-learn's classes write "X : array-like of shape (n_samples, n_features)".
numpydoc_xref_param_type = False

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
copybutton_exclude = ".linenos, .gp, .go"

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    "filename_pattern": r"plot_",
    "ignore_pattern": r"quickstart\.py|reproduce",
    "nested_sections": False,
    "within_subsection_order": "pages.gallery_order",
    "doc_module": ("sklearn_sigmavae",),
    "backreferences_dir": "generated/backreferences",
    "reference_url": {"sklearn_sigmavae": None},
    "capture_repr": (),
    "thumbnail_size": (560, 400),
    "remove_config_comments": True,
    "show_signature": False,
    "download_all_examples": False,
    "parallel": int(os.environ.get("DOCS_JOBS", "1")),
    "junit": os.environ.get("DOCS_JUNIT", ""),
}

html_theme = "pydata_sphinx_theme"
html_title = project
html_favicon = "_static/logo.svg"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_sidebars = {"index": [], "getting_started": [], "theory": [], "gallery": []}
html_theme_options = {
    "logo": {
        "text": project,
        "image_light": "_static/logo.svg",
        "image_dark": "_static/logo.svg",
    },
    "header_links_before_dropdown": 6,
    "navigation_with_keys": False,
    "show_prev_next": True,
    "show_toc_level": 2,
    "footer_start": ["copyright"],
    "footer_end": ["theme-version"],
    "secondary_sidebar_items": ["page-toc"],
    "pygments_light_style": "friendly",
    "pygments_dark_style": "github-dark",
}
