"""Every block of Python in the documentation runs, page by page.

Each page runs with the packages that its own commands install, and no others.
"""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imsave
from page_environment import hide_all_but, installed_by

pytestmark = pytest.mark.docs

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NOT_RUN = "<!-- not run:"


def script_of(text):
    """Blocks of Python of a page, on the same lines as in the page."""
    lines, keep, last = [], False, ""
    for line in text.splitlines():
        if line.startswith("```"):
            keep = line == "```python" and not last.startswith(NOT_RUN)
            lines.append("")
        else:
            lines.append(line if keep else "")
        last = line or last
    return "\n".join(lines)


def test_scripts_have_the_lines_of_their_page():
    blocks = [
        "Text.\n```python\nx = 1\n```",
        "```sh\nls\n```",
        "<!-- not run: it takes a day -->\n```python\nx = 2\n```",
        "```python\nprint(x)\n```",
    ]
    script = script_of("\n".join(blocks))
    assert script.split() == ["x", "=", "1", "print(x)"]
    assert script.splitlines()[2] == "x = 1"


def run_script(script, text, folder):
    """Run a script in a folder, with what the text of its page installs."""
    file = folder / "page.py"
    file.write_text(script, encoding="utf-8")
    hide_all_but(installed_by(text), folder / "site")
    # The page on noise models shows a file of the tests.
    path = [str(folder / "site"), str(ROOT / "tests"), os.environ.get("PYTHONPATH")]
    environment = os.environ | {
        "MPLBACKEND": "Agg",
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
    }
    return subprocess.run(
        [sys.executable, file.name],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page_runs(page, tmp_path):
    text = page.read_text(encoding="utf-8")
    script = script_of(text)
    if not script.strip():
        pytest.skip("has no code")
    # A user of the page on images has a folder of pictures.
    (tmp_path / "photos").mkdir()
    rng = np.random.default_rng(0)
    for i in range(12):
        imsave(tmp_path / f"photos/{i}.png", rng.random((20, 30, 3)))
    done = run_script(script, text, tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("text", "available", "hidden"),
    [
        ("`python -m pip install skops`", [], ["matplotlib", "pandas", "skops"]),
        ("python -m pip install .  # in a checkout", [], ["matplotlib", "skops"]),
        # Pillow comes with matplotlib.
        ('python -m pip install ".[examples]"', ["PIL"], ["pytest", "skops"]),
        ("python -m pip install . skops && ls", ["skops"], ["matplotlib"]),
    ],
)
def test_pages_have_what_they_install(text, available, hidden, tmp_path):
    script = f"""
        import subprocess
        import sys
        from importlib.util import find_spec

        import sklearn_sigmavae

        for name in {available}:
            __import__(name)
        for name in {hidden}:
            assert find_spec(name) is None
            child = [sys.executable, "-c", "import " + name]
            done = subprocess.run(child, capture_output=True)
            assert b"ModuleNotFoundError: No module named" in done.stderr
    """
    if not text.startswith("`"):
        text = f"```sh\n{text}\n```\n"
    done = run_script(textwrap.dedent(script), text, tmp_path)
    assert done.returncode == 0, done.stderr
