"""Any parameters, data and calls: a finite model, or an error that says what is wrong.

Whatever is refused must be refused in known words, and change nothing.
"""

import atexit
import copy
import math
import pickle
import re
import tempfile
import warnings
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, configuration, given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from small_vae import Unchanged, low_rank_rows, small_vae, weights

from sklearn_sigmavae import DivergenceError, GeneralizedNormalNoise, SigmaVAE
from sklearn_sigmavae.networks import ACTIVATIONS

# Even without a database hypothesis writes files: constants that it finds in sources.
_home = tempfile.TemporaryDirectory()
atexit.register(_home.cleanup)
configuration.set_hypothesis_home_dir(_home.name)

# The same cases in every run of the same sources.
PROFILE = {
    "database": None,
    "deadline": None,
    "derandomize": True,
    "phases": [Phase.generate, Phase.shrink],
    "suppress_health_check": list(HealthCheck),
}

ERRORS = [
    r"Input (X|X_val|Z) contains (NaN|infinity)",
    r"Found array with \d+ sample\(s\) .* while a minimum of \d is required",
    r"X has \d+ features, but SigmaVAE is expecting \d+ features",
    r"X(_val)? has samples of shape",
    r"X must have shape \(n_samples, n_features\), or that of images",
    r"The spread of X is not finite in float64",
    r"X has entries too far from the training data",
    r"The '(sigma|image_shape)' parameter of SigmaVAE",
    r"'noise_scale' must be positive and finite",
    r"noise_scale is .* out of the range of float32",
    r"noise='bernoulli' needs data in \[0, 1\]",
    r"Noise of a scale needs noise models that have one",
    r"The noise of this model, BernoulliNoise\(\), has no scale",
    r"init='pca' .* linear_path=False",
    r"The convolutional network of SigmaVAE needs images of at least 4 x 4 pixels",
    r"Training diverged",
    r"A fit that continues from an earlier one .* cannot change ",
    r"sigma='auto' (needs beta=1|is chosen together with|is chosen by all)",
]
WARNINGS = [
    r"X is constant",
    r"No component is in use(: all rows have the same code| at the start: sigma=)",
    r"sigma='(mle|auto)' reached its lower limit",
    r"No epoch improved on the start",
    r"The held-out bound was still rising",
    r"Residuals of typical rows are",
    r"Column \d+ reaches .* times sigma from its mean",
    r"These rows are far (larger|smaller)",
    r"The first chunk has \d+ rows",
    r"X_val lies far outside of X",
]


def documented(call, *args, **kwargs):
    """What a call returns, or the documented error that it raises."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = call(*args, **kwargs)
        except (ValueError, TypeError) as error:
            result = error
    if isinstance(result, Exception):
        assert type(result) in (ValueError, TypeError, DivergenceError), repr(result)
        assert is_known(ERRORS, result), repr(result)
    for warning in caught:
        assert is_known(WARNINGS, warning.message), repr(warning.message)
    return result


def is_known(patterns, message):
    return any(re.match(pattern, str(message), re.DOTALL) for pattern in patterns)


def check_array(array, shape, dtype):
    assert isinstance(array, np.ndarray), array
    assert array.shape == shape
    assert array.dtype == dtype
    assert np.isfinite(array).all(), array


def check_scores(vae, X):
    exact = documented(vae.score_samples, X.astype(np.float64))
    check_array(exact, (len(X),), np.float64)
    scores = documented(vae.score_samples, X)
    # What float32 cannot hold is infinite.
    in_range = exact > -1e35
    check_array(scores[in_range], (in_range.sum(),), np.float64)
    assert not np.isnan(scores).any()


# Data


@dataclass(frozen=True)
class Rows:
    """How to make an array of samples."""

    seed: int
    n_samples: int
    shape: tuple
    kind: str
    magnitude: float
    offset: float
    dtype: str
    trouble: tuple

    def make(self):
        rng = np.random.default_rng(self.seed)
        size = self.n_samples, math.prod(self.shape)
        if self.kind == "normal":
            rows = rng.standard_normal(size)
        elif self.kind == "curved":
            rows = np.sin(rng.uniform(0, 6, (size[0], 1)) * np.arange(1, size[1] + 1))
        else:
            rows = rng.uniform(size=size)
        if self.kind == "binary":
            rows = np.round(rows)
        rows = self._with_trouble(rows, rng)
        with np.errstate(all="ignore"):
            rows = self.magnitude * (rows + self.offset)
        return self._cast(rows).reshape(-1, *self.shape)

    def _with_trouble(self, rows, rng):
        columns = slice(None), slice(0, (rows.shape[1] + 1) // 2)
        entry = rng.integers(len(rows)), rng.integers(rows.shape[1])
        troubles = {
            "constant": (slice(None), 0.5),
            "constant columns": (columns, 0.5),
            "equal columns": (columns, rows[:, :1]),
            "equal rows": (slice(0, len(rows) // 2), rows[:1]),
            "outlier": (entry, 1e6),
            "nan": (entry, math.nan),
            "inf": (entry, math.inf),
        }
        for name in self.trouble:
            place, value = troubles[name]
            rows[place] = value
        return rows

    def _cast(self, rows):
        dtype = np.dtype(self.dtype)
        if dtype.kind == "b":
            return rows > np.nanmean(rows)
        if dtype.kind == "f":
            # scikit-learn takes sums.
            high = 1e-4 * float(np.finfo(dtype).max)
            clipped = np.clip(rows, -high, high)
            return np.where(np.isfinite(rows), clipped, rows).astype(dtype)
        # Floats hold the limits of integers of 64 bits only nearly.
        low, high = max(np.iinfo(dtype).min, -(2**62)), min(np.iinfo(dtype).max, 2**62)
        return np.clip(np.nan_to_num(rows), low, high).astype(dtype)


def log_floats(low, high):
    """Floats whose logarithms to the base 10 are between two numbers."""
    return st.floats(low, high, width=32).map(lambda exponent: 10.0**exponent)


def seldom(often, strategy):
    """One of a few values, but at times something else."""
    return st.one_of([*map(st.just, often), strategy])


DTYPES = [
    *("float64", "float32", "float16", "bool", "uint8", "uint16"),
    *("int8", "int16", "int32", "int64"),
]
SHAPES = st.one_of(
    st.tuples(st.integers(1, 30)),
    st.tuples(st.integers(1, 30)),
    st.tuples(st.integers(1, 8), st.integers(1, 8)),
    st.tuples(st.integers(4, 7), st.integers(4, 7), st.integers(1, 3)),
    st.tuples(st.integers(1, 3), st.integers(4, 7), st.integers(4, 7)),
)
TROUBLES = [
    *("constant", "constant columns", "equal columns", "equal rows"),
    *("outlier", "nan", "inf"),
]


@st.composite
def rows(draw, noise):
    if noise == "bernoulli" and draw(st.integers(0, 7)):
        kind, magnitude, offset = draw(st.sampled_from(["uniform", "binary"])), 1.0, 0.0
    else:
        kind = draw(st.sampled_from(["normal", "curved", "uniform", "binary"]))
        usual = st.one_of(log_floats(-3, 3), log_floats(-30, 30))
        magnitude = draw(seldom([1.0, 100.0], st.one_of(usual, log_floats(-320, 308))))
        offset = draw(seldom([0.0, 1.0], st.floats(-1e6, 1e6)))
    few = st.sets(st.sampled_from(TROUBLES), min_size=1, max_size=2).map(sorted)
    return Rows(
        seed=draw(st.integers(0, 2**31)),
        n_samples=draw(st.one_of(st.integers(8, 40), st.integers(1, 40))),
        shape=draw(SHAPES),
        kind=kind,
        magnitude=magnitude,
        offset=offset,
        dtype=draw(seldom(["float64", "float32"], st.sampled_from(DTYPES))),
        trouble=draw(seldom([(), (), ()], few.map(tuple))),
    )


# Any parameters on any data


def must_succeed(params, rows):
    """Whether nothing at all speaks against a fit."""
    sigma = params["sigma"]
    return (
        (sigma == "mle" or (isinstance(sigma, float) and 0.1 <= sigma <= 10))
        and params["noise"] in ("gaussian", "laplace")
        and (params["linear_path"] or params["init"] == "random")
        and params["network"] == "mlp"
        and params["learning_rate"] <= 1e-2
        and 1e-3 <= params["beta"] <= 1e3
        and not params["warm_start"]
        and rows.n_samples >= 2
        and not {"nan", "inf"} & set(rows.trouble)
        and (rows.dtype == "float64" or 1e-3 <= rows.magnitude <= 1e3)
        and 1e-290 <= rows.magnitude <= 1e290
    )


def in_units_of(X, sigma):
    """Value of a drawn σ, which is in units of the data's spread."""
    if isinstance(sigma, tuple):
        seed, decades, sigma = sigma
        rng = np.random.default_rng(seed)
        sigma = sigma * 10 ** rng.uniform(-decades, decades, X.shape[1:])
    return sigma if isinstance(sigma, str) else sigma * spread_of(X)


def spread_of(X):
    """Standard deviation of the finite entries, or 1."""
    X = X.astype(np.float64)
    X = X[np.isfinite(X)]
    largest = np.abs(X).max(initial=0)
    return float(np.std(X / largest) * largest) or 1.0 if largest else 1.0


FACTORS = st.one_of(log_floats(-1, 1), log_floats(-3, 3), log_floats(-20, 20))
SIZES = st.lists(st.integers(1, 16), max_size=3)


@st.composite
def parameters(draw):
    scales = st.tuples(st.integers(0, 99), st.sampled_from([0, 1, 3, 9]), FACTORS)
    exponents = st.floats(1, 20).map(GeneralizedNormalNoise)
    linear_path = draw(st.sampled_from([True, True, True, False]))
    # The other start needs the path.
    inits = ["pca", "random"] if linear_path else ["random", "random", "random", "pca"]
    return {
        "n_components": draw(st.one_of(st.integers(1, 8), st.integers(1, 40))),
        "sigma": draw(
            st.one_of(FACTORS, FACTORS, st.sampled_from(["mle", "auto"]), scales)
        ),
        "beta": draw(seldom([1.0, 1.0], log_floats(-10, 10))),
        "noise": draw(seldom(["gaussian", "laplace", "bernoulli"], exponents)),
        "network": draw(seldom(["mlp", "mlp"], st.just("conv"))),
        "hidden_layer_sizes": draw(
            st.one_of(SIZES, SIZES.map(tuple), SIZES.map(np.array), st.integers(1, 16))
        ),
        "activation": draw(st.sampled_from(sorted(ACTIVATIONS))),
        "linear_path": linear_path,
        "channels_first": draw(st.booleans()),
        "init": draw(st.sampled_from(inits)),
        "optimizer": draw(st.sampled_from(["adam", "adamw", "sgd"])),
        "learning_rate": draw(seldom([2e-3, 2e-3], log_floats(-8, 3))),
        "lr_schedule": draw(st.sampled_from(["one_cycle", "constant"])),
        "batch_size": draw(st.one_of(st.integers(8, 64), st.integers(1, 10**9))),
        "max_iter": draw(st.integers(0, 3)),
        "early_stopping": draw(st.booleans()),
        "validation_fraction": draw(seldom([0.1], st.floats(0.001, 0.999))),
        "n_iter_no_change": draw(st.integers(1, 3)),
        "tol": draw(seldom([1e-3, 0.0], log_floats(-8, 8))),
        "warm_start": draw(st.booleans()),
        "device": draw(st.sampled_from(["cpu", torch.device("cpu")])),
        "precision": draw(st.sampled_from(["float32", "float32", "tf32", "bfloat16"])),
        "random_state": draw(seldom([0, None], st.integers(0, 2**32 - 1))),
    }


@st.composite
def cases(draw):
    params = draw(parameters())
    made = draw(rows(params["noise"]))
    if params["network"] == "conv" and draw(st.integers(0, 3)):
        made = replace(made, shape=draw(st.sampled_from([(4, 5), (7, 4, 2)])))
    return {
        "params": params,
        "rows": made,
        "flat": len(made.shape) > 1 and draw(st.booleans()),
        "after_a_fit": draw(st.sampled_from([False, False, False, True])),
        "method": draw(st.sampled_from(["fit", "fit", "fit", "partial_fit", "X_val"])),
        "noise_scale": draw(st.one_of(st.just("estimate"), FACTORS)),
    }


def check_fitted(vae, X, n_epochs, noise_scale):
    """Whether all that a fitted estimator does with its training rows is in order."""
    if vae.module_.units.scale.max() > 1e30:
        X = X.astype(np.float64)  # in float32 there is no room for errors
    k, n = vae.n_components, len(X)
    dtype = np.dtype("f4" if X.dtype in (np.float32, np.uint8, np.uint16) else "f8")
    assert all(value.isfinite().all() for value in weights(vae).values())
    assert vae.n_features_in_ == math.prod(X.shape[1:])
    assert vae.n_iter_ == len(vae.history_) <= n_epochs
    assert 0 <= vae.n_active_components_ <= k
    assert 0 <= vae.reconstruction_error_ < math.inf
    if vae.sigma_ is not None:
        assert np.isfinite(vae.sigma_).all()
        assert np.min(vae.sigma_) > 0
    codes = documented(vae.transform, X)
    check_array(codes, (n, k), dtype)
    check_array(documented(vae.inverse_transform, codes), X.shape, dtype)
    check_scores(vae, X)
    check_array(documented(vae.kl_divergence, X), (n, k), dtype)
    for add_noise in (False, True):
        draws = documented(vae.sample, 3, add_noise=add_noise, random_state=0)
        check_array(draws, (3, *X.shape[1:]), np.float64)
    for array in documented(vae.posterior, X):
        check_array(array, (n, k), dtype)
    check_refined(vae, X, noise_scale, dtype)


def check_refined(vae, X, noise_scale, dtype):
    if not isinstance(noise_scale, str):
        noise_scale = noise_scale * spread_of(X)
    given = {"noise_scale": noise_scale, "max_iter": 4}
    refined = documented(vae.posterior, X, **given)
    if isinstance(refined, Exception):
        assert isinstance(documented(vae.denoise, X, **given), ValueError)
    else:
        for array in refined:
            check_array(array, (len(X), vae.n_components), dtype)
        assert (refined[1] >= 0).all()
        check_array(documented(vae.denoise, X, **given), X.shape, dtype)
    scale = documented(vae.estimate_noise_scale, X)
    assert isinstance(scale, ValueError) or 0 <= scale < math.inf
    Y = X.astype(dtype)
    Y.flat[0] = math.nan
    filled = documented(vae.denoise, Y, noise_scale=None, max_iter=4)
    if not isinstance(filled, ValueError):
        check_array(filled, X.shape, dtype)


def call_of(vae, method, X):
    """Outcome of a method that trains, or of a fit with held-out rows."""
    if method == "partial_fit":
        return documented(vae.partial_fit, X)
    return documented(vae.fit, X, X_val=X[:3] if method == "X_val" else None)


def check_case(params, rows, flat, after_a_fit, method, noise_scale):
    """Fit, and look at the model or at what is left of the one before."""
    succeeds = must_succeed(params, rows)
    X = rows.make()
    if flat:
        params["image_shape"] = X.shape[1:]
        X = X.reshape(len(X), -1)
    params["sigma"] = in_units_of(X, params["sigma"])
    vae = SigmaVAE(**params)
    if after_a_fit:
        vae = small_vae().fit(low_rank_rows()).set_params(**params)
    before, X_before = Unchanged(vae), X.copy()
    state = torch.random.get_rng_state()
    outcome = call_of(vae, method, X)
    assert torch.equal(torch.random.get_rng_state(), state)
    np.testing.assert_array_equal(X, X_before)
    assert all(vae.get_params()[name] is value for name, value in params.items())
    continues = after_a_fit and (vae.warm_start or method == "partial_fit")
    if isinstance(outcome, Exception):
        assert continues or not succeeds, outcome
        before.check()
        return
    n_epochs = 1 if method == "partial_fit" else params["max_iter"]
    check_fitted(vae, X, n_epochs + 3 * continues, noise_scale)


@pytest.mark.parametrize("n", [60, pytest.param(2000, marks=pytest.mark.slow)])
def test_a_fit_gives_a_finite_model_or_a_documented_error(n):
    settings(**PROFILE, max_examples=n)(
        given(cases())(lambda case: check_case(**case))
    )()


# Any sequence of calls on one estimator

X = low_rank_rows()
BINARY = low_rank_rows(20) > 1
SETTINGS = {
    "sigma": [0.1, 1.0, "mle", "auto"],
    "n_components": [1, 2, 5],
    "noise": ["gaussian", "laplace", "bernoulli"],
    "hidden_layer_sizes": [(8,), (), [4, 4]],
    "max_iter": [0, 1, 2],
    "warm_start": [True, False],
    "learning_rate": [1e-3, 1e30],
    "optimizer": ["adam", "sgd"],
    "early_stopping": [True, False],
    "batch_size": [4, 60],
    "init": ["pca", "random"],
    "linear_path": [True, False],
    "random_state": [0, None],
}
SHAPING = {"n_components", "noise", "hidden_layer_sizes", "linear_path"}
DATA = {
    "rows": X,
    "other rows": low_rank_rows(30, seed=1),
    "single precision": X.astype(np.float32),
    "binary": BINARY,
    "one row": X[:1],
    "a gap": np.where(X > 3, np.nan, X),
    "other features": X[:, :3],
    "constant": np.ones((9, 5)),
}
SETTERS = st.sampled_from(
    [("set", (name, value)) for name, values in SETTINGS.items() for value in values]
)
TRAINERS = st.tuples(
    st.sampled_from(["fit", "fit", "X_val", "partial_fit", "partial_fit"]),
    st.sampled_from(["rows", "rows", *DATA]),
)
COPIES = {
    "pickle": lambda vae: pickle.loads(pickle.dumps(vae)),
    "copy": copy.deepcopy,
}
OTHERS = st.tuples(st.sampled_from([*COPIES, "clone", "use"]), st.none())
SEQUENCES = st.lists(st.one_of(SETTERS, TRAINERS, TRAINERS, OTHERS), max_size=12)


class Story:
    """An estimator, and what is known of it from what has happened to it."""

    def __init__(self):
        self.vae = small_vae(max_iter=1)
        self.shape = None
        self.n_epochs = 0

    def go_on(self, action, argument):
        if action == "set":
            self.vae.set_params(**dict([argument]))
        elif action == "clone":
            self.vae, self.shape = clone(self.vae), None
        elif action in COPIES:
            before, self.vae = self.vae, COPIES[action](self.vae)
            if self.shape is not None:
                np.testing.assert_array_equal(codes(self.vae), codes(before))
        elif action == "use":
            self.use()
        else:
            self.train(action, DATA[argument])

    def train(self, method, rows):
        vae = self.vae
        continues = self.shape is not None and (
            vae.warm_start or method == "partial_fit"
        )
        shape = {name: vae.get_params()[name] for name in SHAPING}
        shape["hidden_layer_sizes"] = tuple(shape["hidden_layer_sizes"])
        before, params = Unchanged(vae), vae.get_params()
        outcome = call_of(vae, method, rows)
        assert vae.get_params() == params
        if isinstance(outcome, Exception):
            before.check()
            return
        assert outcome is vae
        assert not continues or shape == self.shape
        self.n_epochs = continues * self.n_epochs
        self.n_epochs += 1 if method == "partial_fit" else vae.max_iter
        self.shape, self.n_features = shape, rows.shape[1]
        self.use()

    def use(self):
        vae = self.vae
        if self.shape is None:
            with pytest.raises(NotFittedError):
                vae.transform(X)
            return
        k, d = self.shape["n_components"], self.n_features
        assert vae.n_iter_ == len(vae.history_) == self.n_epochs
        assert vae.n_features_in_ == d
        with Unchanged(vae):
            check_array(codes(vae), (20, k), np.float64)
            check_array(vae.sample(2), (2, d), np.float64)
            check_scores(vae, BINARY[:, :d])
            check_array(vae.inverse_transform(np.ones((3, k))), (3, d), np.float64)
            noisy = documented(vae.denoise, BINARY[:, :d], max_iter=2)
        assert self.shape["noise"] != "bernoulli" or isinstance(noisy, ValueError)


def codes(vae):
    return vae.transform(BINARY[:, : vae.n_features_in_])


def check_sequence(actions):
    story = Story()
    for action, argument in actions:
        story.go_on(action, argument)
    story.use()


@pytest.mark.parametrize("n", [25, pytest.param(1000, marks=pytest.mark.slow)])
def test_calls_in_any_order(n):
    settings(**PROFILE, max_examples=n)(given(SEQUENCES)(check_sequence))()


# Found here


@pytest.mark.parametrize(
    ("noise", "noise_scale"), [("gaussian", 1e-10), (GeneralizedNormalNoise(8.0), 1e-3)]
)
def test_steep_gradients_leave_no_gaps(noise, noise_scale):
    vae = small_vae(noise=noise, init="random").fit(X)
    assert np.isfinite(vae.denoise(X, noise_scale=noise_scale)).all()
    assert np.isfinite(vae.posterior(X, noise_scale=noise_scale)).all()


def test_the_scale_of_the_noise_of_constant_rows_is_a_number():
    rows = np.zeros((10, 5))
    vae = small_vae(noise=GeneralizedNormalNoise(8.0), init="random").fit(rows)
    assert vae.estimate_noise_scale(rows) >= 0
