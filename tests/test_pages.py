"""Every block of Python in the documentation runs, page by page, as a user would."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page_runs(page, tmp_path):
    script = script_of(page.read_text(encoding="utf-8"))
    if not script.strip():
        pytest.skip("has no code")
    file = tmp_path / f"{page.stem}.py"
    file.write_text(script, encoding="utf-8")
    make_photos(tmp_path / "photos")
    environment = os.environ | {
        "MPLBACKEND": "Agg",
        # The page on noise models shows a file of the tests.
        "PYTHONPATH": os.pathsep.join(
            filter(None, [str(ROOT / "tests"), os.environ.get("PYTHONPATH")])
        ),
    }
    done = subprocess.run(
        [sys.executable, file.name],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def make_photos(folder):
    """What a user of the page on images has: a folder of pictures."""
    from matplotlib.image import imsave

    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(12):
        imsave(folder / f"{i}.png", rng.random((20, 30, 3)))
