"""Every block of Python in the documentation runs, page by page, as a user would.

That is with the packages that the page's own commands install, and no others.
"""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from page_environment import hide_all_but, installed_by

pytestmark = pytest.mark.docs

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NOT_RUN = "<!-- not run:"


def script_of(text):
    """Blocks of Python of a page, each in the lines where the page has it."""
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
    text = "\n".join(
        [
            "Text.",
            "```python",
            "x = 1",
            "```",
            "```sh",
            "ls",
            "```",
            "<!-- not run: it takes a day -->",
            "```python",
            "x = 2",
            "```",
            "```python",
            "print(x)",
            "```",
        ]
    )
    expected = "x = 1\nprint(x)"
    script = script_of(text)
    assert re.sub(r"\n+", "\n", script).strip() == expected
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
    make_photos(tmp_path / "photos")
    done = run_script(script, text, tmp_path)
    assert done.returncode == 0, done.stderr


PLAIN = "```sh\npython -m pip install .  # in a checkout\n```\n"
WITH_PICTURES = '```sh\npython -m pip install ".[examples]"\n```\n'
WITH_SKOPS = "```sh\npython -m pip install . skops\n```\n"


@pytest.mark.parametrize("text", [PLAIN, "`python -m pip install skops`"])
def test_pages_without_extras_have_none(text, tmp_path):
    script = """
        import importlib.util
        import subprocess
        import sys

        import sklearn_sigmavae  # and what it needs

        for name in ("matplotlib", "matplotlib.pyplot", "pandas", "pytest", "skops"):
            try:
                __import__(name)
            except ModuleNotFoundError as error:
                assert error.name == name.partition(".")[0]
            else:
                sys.exit(f"{name} was imported")
        assert importlib.util.find_spec("matplotlib") is None
        child = [sys.executable, "-c", "import matplotlib"]
        assert b"No module" in subprocess.run(child, capture_output=True).stderr
    """
    done = run_script(textwrap.dedent(script), text, tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("text", "name", "hidden"),
    [
        (WITH_PICTURES, "PIL", "skops"),  # Pillow comes with Matplotlib
        (WITH_SKOPS, "skops", "matplotlib"),
        (WITH_SKOPS + WITH_PICTURES, "skops, matplotlib", "pytest"),
    ],
)
def test_pages_have_what_they_install(text, name, hidden, tmp_path):
    done = run_script(f"import {name}\nimport {hidden}", text, tmp_path)
    assert done.returncode == 1
    assert f"ModuleNotFoundError: No module named '{hidden}'" in done.stderr


def make_photos(folder):
    """What a user of the page on images has: a folder of pictures."""
    from matplotlib.image import imsave

    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(12):
        imsave(folder / f"{i}.png", rng.random((20, 30, 3)))
