"""An environment where only what a page of the documentation installs is importable.

The tests run where everything is installed, and a page that needs more than its own
``pip install`` runs there too. So its script starts with a ``sitecustomize`` that hides
the modules of all other distributions, in processes that it starts as well.
"""

import re
import shlex
from importlib.metadata import PackageNotFoundError, packages_distributions, requires

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PACKAGE = "sklearn-sigmavae"

SITECUSTOMIZE = """
from importlib.machinery import PathFinder

HIDDEN = {hidden!r}
find_spec = PathFinder.find_spec


def find_unless_hidden(name, path=None, target=None):
    if name.partition(".")[0] not in HIDDEN:
        return find_spec(name, path, target)


PathFinder.find_spec = find_unless_hidden
"""


def installed_by(text):
    """Requirements of the commands of a page that install, the package's among them."""
    requirements = [Requirement(PACKAGE)]
    for block in re.findall(r"^```sh\n(.*?)^```", text, flags=re.M | re.S):
        for command in re.split(r"\n|&&", block):
            words = shlex.split(command, comments=True)
            if words[:4] == ["python", "-m", "pip", "install"]:
                # "." is this package: its root is where the command runs.
                names = [re.sub(r"^\.(?=$|\[)", PACKAGE, word) for word in words[4:]]
                requirements += map(Requirement, names)
    return requirements


def closure(requirements):
    """Canonical names of distributions that come with requirements, recursively."""
    seen, pending = set(), list(requirements)
    while pending:
        requirement = pending.pop()
        for extra in {"", *requirement.extras}:
            key = canonicalize_name(requirement.name), extra
            if key in seen:
                continue
            seen.add(key)
            try:
                needs = requires(requirement.name) or []
            except PackageNotFoundError:  # not here, so nothing to hide
                continue
            pending += [
                need
                for need in map(Requirement, needs)
                if not need.marker or need.marker.evaluate({"extra": extra})
            ]
    return {name for name, _ in seen}


def hide_all_but(requirements, folder):
    """Write a ``sitecustomize`` to a folder, which has to be on the Python path."""
    installed = closure(requirements)
    hidden = {
        module
        for module, distributions in packages_distributions().items()
        if installed.isdisjoint(map(canonicalize_name, distributions))
    }
    folder.mkdir()
    text = SITECUSTOMIZE.format(hidden=hidden)
    (folder / "sitecustomize.py").write_text(text, encoding="utf-8")
