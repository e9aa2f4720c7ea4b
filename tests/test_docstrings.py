"""Public names have complete docstrings, in numpydoc's form.

That the examples are right is for ``--doctest-modules`` to check.
"""

import doctest
import functools
import importlib
import inspect
import re

import pytest
from numpydoc.docscrape import get_doc_object
from numpydoc.validate import validate

MODULES = [
    "sklearn_sigmavae",
    "sklearn_sigmavae.metrics",
    "sklearn_sigmavae.networks",
    "sklearn_sigmavae.noise",
]

# What numpydoc asks for and we do not provide.
IGNORED = {
    "ES01",  # a summary may need no more words
    "RT02",  # scikit-learn names a return value even if there is only one
}

# The same by kind of object.
IGNORED_OF = {
    "class": set(),
    # Whether Python knows the signature of its own exceptions depends on its version.
    "exception": {"PR01"},
    "function": set(),
    # The class, whose page they are on, has the references.
    "method": {"SA01"},
    # A line that names the method of the base class, which has the sections.
    "override": {"SA01", "PR01", "RT01", "EX01"},
    # "float : What it is." is scikit-learn's style: a type, and one line.
    "property": {"SS02", "SA01", "EX01"},
}


def _is_ours(cls):
    return cls.__module__.split(".")[0] == "sklearn_sigmavae"


def _members(cls, public):
    """Public methods and properties of a class, except those of other public ones."""
    members = {}
    for base in cls.__mro__:
        if not _is_ours(base) or (base is not cls and base in public):
            continue
        for name, member in vars(base).items():
            # scikit-learn makes the set_*_request methods.
            if name.startswith("_") or re.fullmatch(r"set_\w+_request", name):
                continue
            kinds = property | functools.cached_property
            if inspect.isroutine(member) or isinstance(member, kinds):
                members.setdefault(name, member)
    return members


def _kind_of_member(cls, name, member):
    if not inspect.isroutine(member):
        return "property"
    # An override that adds something has sections, and all of them.
    doc = inspect.getdoc(member) or ""
    bases = [base.__name__ for base in cls.__mro__[1:] if _is_ours(base)]
    names_base = any(f":meth:`{base}.{name}`" in doc for base in bases)
    return "override" if names_base and "\n---" not in doc else "method"


def _public():
    """All public objects: dotted name, object and kind."""
    found = {}
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        for name in module.__all__:
            if callable(getattr(module, name)):
                found.setdefault(getattr(module, name), f"{module_name}.{name}")
    for obj, dotted in found.items():
        if not inspect.isclass(obj):
            yield dotted, obj, "function"
            continue
        yield dotted, obj, "exception" if issubclass(obj, Exception) else "class"
        for name, member in _members(obj, found).items():
            # numpydoc needs the function of a class method, or of an available_if.
            function = getattr(member, "__func__", getattr(member, "fn", member))
            yield f"{dotted}.{name}", function, _kind_of_member(obj, name, member)


PUBLIC = {name: (obj, kind) for name, obj, kind in _public()}


def test_public_names_are_found():
    assert "sklearn_sigmavae.SigmaVAE.fit" in PUBLIC
    assert "sklearn_sigmavae.SigmaVAE.load" in PUBLIC
    assert PUBLIC["sklearn_sigmavae.SigmaPath.best_sigma"][1] == "property"
    energy = "sklearn_sigmavae.GeneralizedNormalNoise.energy"
    assert PUBLIC[energy][1] == "override"


@pytest.mark.parametrize("name", PUBLIC)
def test_docstrings_are_complete(name):
    obj, kind = PUBLIC[name]
    doc = get_doc_object(obj)
    ignored = IGNORED | IGNORED_OF[kind]
    assert [error for error in validate(doc)["errors"] if error[0] not in ignored] == []
    # Arrays have shapes.
    described = [*doc["Parameters"], *doc["Attributes"], *doc["Returns"]]
    for parameter, type_, _ in described:
        if re.search("ndarray|array-like|Tensor", type_):
            assert re.search("shape|images", type_), f"{parameter} : {type_}"
    if "EX01" not in ignored:
        # An example shows something.
        example = "\n".join(doc["Examples"])
        assert any(e.want for e in doctest.DocTestParser().get_examples(example))
