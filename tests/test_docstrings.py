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

# What numpydoc asks for and we do not give, by kind of object.
IGNORED = {
    "class": {
        "ES01",  # a summary that says it all needs no more words
    },
    "function": {
        "ES01",
        "RT02",  # scikit-learn names a return value also where there is one only
    },
    # The class, whose page they are on, says what else there is to see.
    "method": {"ES01", "RT02", "SA01"},
    # "float : What it is." is scikit-learn's manner: a type, and no more than a line.
    "property": {"ES01", "SS02", "SA01", "EX01"},
    # Whether Python tells the signature of its own exceptions depends on its version.
    "exception": {"ES01", "PR01"},
    # A line that names what it overrides, where all the rest is told.
    "override": {"ES01", "SA01", "PR01", "RT01", "EX01"},
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
    "sklearn_sigmavae.noise.NoiseModel.mean",
    "sklearn_sigmavae.noise.NoiseModel.location_of_mean",
}


def _members(cls):
    """Public methods and properties that a class defines itself, by name."""
    for name, member in vars(cls).items():
        # scikit-learn makes the set_*_request methods.
        if name.startswith("_") or re.fullmatch(r"set_\w+_request", name):
            continue
        if inspect.isroutine(member) or isinstance(
            member, property | functools.cached_property
        ):
            yield name


def _kind_of_member(cls, name):
    member = vars(cls)[name]
    if not inspect.isroutine(member):
        return "property"
    bases = [
        base
        for base in cls.__mro__[1:]
        if name in vars(base) and base.__module__.startswith("sklearn_sigmavae")
    ]
    doc = inspect.getdoc(member) or ""
    # One that adds something to what its base says has sections, and all of them.
    if any(f":meth:`{base.__name__}.{name}`" in doc for base in bases):
        return "method" if "\n---" in doc else "override"
    return "method"


def _public():
    """All public objects: dotted name, object and kind."""
    seen = set()
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        for name in module.__all__:
            obj, dotted = getattr(module, name), f"{module_name}.{name}"
            if not callable(obj) or obj in seen:
                continue
            seen.add(obj)
            if not inspect.isclass(obj):
                yield dotted, obj, "function"
                continue
            exception = issubclass(obj, Exception)
            yield dotted, obj, "exception" if exception else "class"
            for member in _members(obj):
                # A class method by its function, whose signature numpydoc reads.
                value = inspect.getattr_static(obj, member)
                value = getattr(value, "__func__", value)
                yield f"{dotted}.{member}", value, _kind_of_member(obj, member)


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


@public(*IGNORED)
def test_numpydoc_finds_nothing_amiss(name):
    obj, kind = PUBLIC[name]
    found = validate(get_doc_object(obj))["errors"]
    assert [error for error in found if error[0] not in IGNORED[kind]] == []


@public("class", "function", "method", "property")
def test_arrays_have_shapes(name):
    arrays = [
        (one, type_)
        for _, one, type_, _ in _described(name)
        if re.search("ndarray|array-like|Tensor", type_)
    ]
    assert [one for one in arrays if not re.search("shape|images", one[1])] == []


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
    for _, types, description in raised:
        assert description
        for type_ in types.split(", "):
            homes = builtins, sklearn_sigmavae, exceptions
            cls = next(filter(None, (getattr(home, type_, None) for home in homes)))
            assert issubclass(cls, Exception)


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
