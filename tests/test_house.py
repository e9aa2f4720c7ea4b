"""The map of the house in CONTRIBUTING.md: it is complete, and arrows go down only."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "sklearn_sigmavae"

# Names that all rooms may use.
EVERYWHERE = {"__init__", "_version"}


def floors():
    """Floor of each module: 0 is the highest row of the table."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text.partition("## The map of the house")[2].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    return {
        name: floor
        for floor, row in enumerate(rows)
        for name in re.findall(r"`(\w+)(?:\.py|/)`", row.split("|")[1])
    }


def room_of(path):
    """Name in the map: a module, or the folder it is in."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


MODULES = sorted(PACKAGE.rglob("*.py"))


def test_the_map_is_complete():
    rooms = {room_of(path) for path in MODULES} - EVERYWHERE
    assert rooms == set(floors())


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_arrows_go_down_only(path):
    room = room_of(path)
    if room in EVERYWHERE:
        pytest.skip("is on every floor")
    floor = floors()
    above = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
            # From the top it could be any floor, and hides which.
            assert not any(name.startswith("sklearn_sigmavae") for name in modules)
        if not isinstance(node, ast.ImportFrom):
            continue
        if not node.level:
            assert not node.module.startswith("sklearn_sigmavae")
            continue
        inside = len(path.relative_to(PACKAGE).parts) - node.level
        names = [room] if inside else [(node.module or "").split(".")[0]]
        if not node.module:
            names = [alias.name for alias in node.names]
        above += [n for n in names if n in floor and floor[n] < floor[room]]
    assert not above, f"{path.name} imports {above}, which stand above it"
