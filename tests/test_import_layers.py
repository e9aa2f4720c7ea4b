"""Arrows between the folders and modules of the package go down only."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "sklearn_sigmavae"

# None imports what stands above it.
LAYERS = [
    {"_selection", "_plot", "imputation", "metrics", "outliers"},
    {"_wrapped"},
    {"_sigma_vae"},
    {"_training"},
    {"_denoise", "_files", "_importance"},
    {"_validation"},
    {"_model"},
    {"priors"},
    {"networks", "noise"},
    {"_errors", "_version"},
]
LAYER_OF = {name: i for i, layer in enumerate(LAYERS) for name in layer}
MODULES = [path for path in sorted(PACKAGE.rglob("*.py")) if path.stem != "__init__"]


def imported(path):
    """Folders and modules of the package that a module imports from."""
    depth = len(path.relative_to(PACKAGE).parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            # From the top it could be any layer, and hides which.
            assert not any(name.name.startswith("sklearn_sig") for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level or not node.module.startswith("sklearn_sigmavae")
            if node.level == depth:
                names = [name.name for name in node.names]
                yield from [node.module.split(".")[0]] if node.module else names


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_arrows_go_down_only(path):
    layer = LAYER_OF[path.relative_to(PACKAGE).parts[0].removesuffix(".py")]
    above = {name for name in imported(path) if LAYER_OF[name] < layer}
    assert not above


def test_importing_changes_nothing_in_the_process():
    script = (
        "import os, random, signal, sys, threading, warnings\n"
        "import matplotlib, numpy, skorch, sklearn.model_selection, torch\n"
        "os.register_at_fork = None\n"
        "def state():\n"
        "    return (\n"
        "        list(warnings.filters), threading.enumerate(), random.getstate(),\n"
        "        signal.getsignal(signal.SIGINT), torch.get_num_threads(),\n"
        "        torch.get_rng_state().tolist(), torch.get_default_dtype(),\n"
        "        os.environ.copy(), list(sys.path), numpy.geterr(),\n"
        "    )\n"
        "before = state()\n"
        "import sklearn_sigmavae\n"
        "assert state() == before\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
