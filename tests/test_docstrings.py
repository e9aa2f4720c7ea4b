"""Every public name tells all that its user needs, in numpydoc's form.

Parameters and results, shapes, units, errors, where the idea is from, and an example.
That the examples are right is for ``--doctest-modules`` to say.
"""

import builtins
import doctest
import functools
import importlib
import inspect
import re

import pytest
from numpydoc.docscrape import get_doc_object
from numpydoc.validate import validate
from sklearn import exceptions

import sklearn_sigmavae

MODULES = [
    "sklearn_sigmavae",
    "sklearn_sigmavae.metrics",
    "sklearn_sigmavae.networks",
    "sklearn_sigmavae.noise",
]

# What numpydoc asks for and we do not give.
IGNORED = {
    "ES01",  # a summary that says it all needs no more words
    "RT02",  # scikit-learn names a return value also where there is one only
}

# The same by kind of object.
IGNORED_OF = {
    "class": set(),
    # Whether Python tells the signature of its own exceptions depends on its version.
    "exception": {"PR01"},
    "function": set(),
    # The class, whose page they are on, says what else there is to see.
    "method": {"SA01"},
    # A line that names what it overrides, where all the rest is told.
    "override": {"SA01", "PR01", "RT01", "EX01"},
    # "float : What it is." is scikit-learn's manner: a type, and no more than a line.
    "property": {"SS02", "SA01", "EX01"},
}

# Words that the description of a quantity has, by the section and name of it.
UNITS = {
    r"\w+ (best_)?sigmas?(_from|_to|_)?": r"units",
    r"\w+ (noise_)?scales?": r"units",
    r"\w+ (reconstruction_error_|errors)": r"units",
    r"\w+ (\w+_)?(distortion|variance)|\w+ eigenvalues": r"units",
    r"Returns X": r"units",
    r"\w+ ((\w+_)?kl|(best_)?score_?|test_scores|tol)": r"nats|units",
    r"\w+ (energy|log_normalizer|log_prob)": r"nats",
    r"\w+ prefactor": r"nats",
    r"\w+ \w*_time_": r"[Ss]econds",
    r"\w+ (max_iter|n_iter_\w*)": r"epoch|step",
    r"\w+ (eps|\w+_fraction)": r"[Ff]raction",
}

# The same for functions and methods, by their names, anywhere in their docstrings.
UNITS_OF_CALLS = {
    r"score|elbo|importance_weighted|kl|bound|log_prob|energy|log_normalizer": (
        r"nats|squared units"
    ),
    r"scale|denois|posterior": r"units",
}

# They give back what they are given, whatever it is.
CANNOT_FAIL = {
    "sklearn_sigmavae.NoiseModel.mean",
    "sklearn_sigmavae.NoiseModel.location_of_mean",
}


def _is_ours(cls):
    return cls.__module__.split(".")[0] == "sklearn_sigmavae"


def _members(cls, public):
    """Public methods and properties of a class by name, those of others left out."""
    members = {}
    for base in cls.__mro__:
        # What is inherited from a public class is told there.
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
    # One that adds something to what its base says has sections, and all of them.
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
            # A name is told by the first module that has it.
            if callable(getattr(module, name)):
                found.setdefault(getattr(module, name), f"{module_name}.{name}")
    for obj, dotted in found.items():
        if not inspect.isclass(obj):
            yield dotted, obj, "function"
            continue
        yield dotted, obj, "exception" if issubclass(obj, Exception) else "class"
        for name, member in _members(obj, found).items():
            # A class method, or one that is there at times, by its function, whose
            # signature numpydoc reads.
            function = getattr(member, "__func__", getattr(member, "fn", member))
            yield f"{dotted}.{name}", function, _kind_of_member(obj, name, member)


PUBLIC = {name: (obj, kind) for name, obj, kind in _public()}


def public(*kinds):
    """Parametrize a test over the public objects of some kinds."""
    names = [name for name, (_, kind) in PUBLIC.items() if kind in kinds]
    return pytest.mark.parametrize("name", names)


def _doc(name):
    return get_doc_object(PUBLIC[name][0])


def _described(name):
    """Section, name, type and description of each value that a docstring tells of."""
    obj, kind = PUBLIC[name]
    if kind == "property":
        type_, _, description = inspect.getdoc(obj).partition(" : ")
        yield "Property", name.rpartition(".")[2], type_, description
        return
    doc = get_doc_object(obj)
    for section in ("Parameters", "Attributes", "Returns"):
        for names, type_, description in doc[section]:
            for one in names.split(", "):
                yield section, one, type_, " ".join(description)


def _parameters(name):
    parameters = inspect.signature(PUBLIC[name][0]).parameters
    return [each for each in parameters if each not in ("self", "cls")]


def test_public_names_are_found():
    assert "sklearn_sigmavae.SigmaVAE.fit" in PUBLIC
    assert "sklearn_sigmavae.SigmaVAE.load" in PUBLIC
    assert PUBLIC["sklearn_sigmavae.SigmaPath.best_sigma"][1] == "property"
    energy = "sklearn_sigmavae.GeneralizedNormalNoise.energy"
    assert PUBLIC[energy][1] == "override"


@public(*IGNORED_OF)
def test_numpydoc_finds_nothing_amiss(name):
    obj, kind = PUBLIC[name]
    ignored = IGNORED | IGNORED_OF[kind]
    found = validate(get_doc_object(obj))["errors"]
    assert [error for error in found if error[0] not in ignored] == []


@public("class", "function", "method", "property")
def test_arrays_have_shapes(name):
    lacking = [
        f"{one} : {type_}"
        for _, one, type_, _ in _described(name)
        if re.search("ndarray|array-like|Tensor", type_)
        and not re.search("shape|images", type_)
    ]
    assert lacking == []


@public("class", "function", "method", "property")
def test_quantities_have_units(name):
    lacking = [
        f"{section}, {one}: {words}"
        for section, one, _, description in _described(name)
        for pattern, words in UNITS.items()
        if re.fullmatch(pattern, f"{section} {one}")
        and not re.search(words, description)
    ]
    assert lacking == []


@public("function", "method", "property")
def test_calls_have_units(name):
    for pattern, words in UNITS_OF_CALLS.items():
        if re.search(pattern, name.rpartition(".")[2]):
            assert re.search(words, inspect.getdoc(PUBLIC[name][0]))


# The constructors of classes only assign, as scikit-learn wants it.
@public("function", "method")
def test_errors_are_told(name):
    if not _parameters(name) or name in CANNOT_FAIL:
        return
    raised = _doc(name)["Raises"]
    assert raised
    homes = builtins, sklearn_sigmavae, exceptions
    known = {
        each
        for home in homes
        for each, value in vars(home).items()
        if inspect.isclass(value) and issubclass(value, Exception)
    }
    for _, types, description in [*raised, *_doc(name)["Warns"]]:
        assert description
        assert set(types.split(", ")) <= known


@public("class", "function")
def test_sources_are_told(name):
    text = "\n".join(_doc(name)["References"])
    numbers = re.findall(r"^\.\. \[(\d+)\]", text, flags=re.MULTILINE)
    assert numbers
    docstring = inspect.getdoc(PUBLIC[name][0])
    assert [number for number in numbers if f"[{number}]_" not in docstring] == []


@public("class", "exception", "function", "method")
def test_there_is_an_example(name):
    examples = doctest.DocTestParser().get_examples("\n".join(_doc(name)["Examples"]))
    # It shows something.
    assert any(example.want for example in examples)
