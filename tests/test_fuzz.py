"""Any parameters on any data: a finite model, or an error that says what is wrong."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_calls import PROFILE, Unchanged, check_array, check_scores, documented
from small_vae import low_rank_rows, small_vae, weights

from sklearn_sigmavae import GeneralizedNormalNoise, SigmaVAE
from sklearn_sigmavae.networks import ACTIVATIONS

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
    order: str
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
        return self._ordered(self._cast(rows).reshape(-1, *self.shape))

    def _with_trouble(self, rows, rng):
        half = slice(0, (rows.shape[1] + 1) // 2)
        if "constant" in self.trouble:
            rows[:] = 0.5
        if "constant columns" in self.trouble:
            rows[:, half] = 0.5
        if "equal columns" in self.trouble:
            rows[:, half] = rows[:, :1]
        if "equal rows" in self.trouble:
            rows[: len(rows) // 2] = rows[:1]
        at = rng.integers(len(rows)), rng.integers(rows.shape[1])
        for name, value in {"outlier": 1e6, "nan": math.nan, "inf": math.inf}.items():
            if name in self.trouble:
                rows[at] = value
        return rows

    def _cast(self, rows):
        dtype = np.dtype(self.dtype)
        if dtype.kind == "f":
            # scikit-learn takes sums.
            largest = 1e-4 * float(np.finfo(dtype).max)
            clipped = np.clip(rows, -largest, largest)
            return np.where(np.isfinite(rows), clipped, rows).astype(dtype)
        if dtype.kind == "b":
            return rows > np.nanmean(rows)
        # Of integers of 64 bits, floats know the limits only nearly.
        info, least = np.iinfo(dtype), max(np.iinfo(dtype).min, -(2**62))
        rows = np.nan_to_num(rows, nan=0.0, posinf=1e300, neginf=-1e300)
        return np.clip(rows, least, min(info.max, 2**62)).astype(dtype)

    def _ordered(self, X):
        if self.order == "F":
            return np.asfortranarray(X)
        if self.order == "strided":
            return np.repeat(X, 2, axis=0)[::2]
        if self.order == "backward":
            return np.ascontiguousarray(X[..., ::-1])[..., ::-1]
        if self.order == "read-only":
            X.flags.writeable = False
        return X


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
        order=draw(st.sampled_from(["C", "F", "strided", "backward", "read-only"])),
        trouble=draw(seldom([(), (), ()], few.map(tuple))),
    )


# Cases


@dataclass(frozen=True)
class Case:
    """An estimator's parameters, with σ in units of the data's spread, and data."""

    params: dict
    rows: Rows
    flat: bool
    after_a_fit: bool
    method: str
    noise_scale: float | str

    def make(self):
        X = self.rows.make()
        params = dict(self.params)
        if self.flat:
            params["image_shape"] = X.shape[1:]
            X = X.reshape(len(X), -1)
        factor, unit = params["sigma"], spread_of(X)
        if isinstance(factor, tuple):
            seed, decades, factor = factor
            shape = X.shape[1:]
            rng = np.random.default_rng(seed)
            factor = factor * 10 ** rng.uniform(-decades, decades, shape)
        if not isinstance(factor, str):
            params["sigma"] = factor * unit
        return params, X

    @property
    def must_succeed(self):
        """Whether nothing at all speaks against this fit."""
        params, rows = self.params, self.rows
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


def spread_of(X):
    """Standard deviation of the finite entries, or 1."""
    X = X.astype(np.float64)
    largest = np.abs(X, where=np.isfinite(X), out=np.zeros(X.shape)).max(initial=0)
    if not largest:
        return 1.0
    centred = X / largest - np.nanmean((X / largest)[np.isfinite(X)], axis=0)
    return float(np.nanstd(centred[np.isfinite(X)]) * largest) or 1.0


NOISES = seldom(
    ["gaussian", "laplace", "bernoulli"],
    st.floats(1, 20).map(GeneralizedNormalNoise),
)
FACTORS = st.one_of(log_floats(-1, 1), log_floats(-3, 3), log_floats(-20, 20))
SIZES = st.lists(st.integers(1, 16), max_size=3)


@st.composite
def parameters(draw):
    scales = st.tuples(st.integers(0, 99), st.sampled_from([0, 1, 3, 9]), FACTORS)
    linear_path = draw(st.sampled_from([True, True, True, False]))
    # The other start needs the path.
    inits = ["pca", "random"] if linear_path else ["random", "random", "random", "pca"]
    return {
        "n_components": draw(st.one_of(st.integers(1, 8), st.integers(1, 40))),
        "sigma": draw(st.one_of(FACTORS, FACTORS, st.just("mle"), scales)),
        "beta": draw(seldom([1.0, 1.0], log_floats(-10, 10))),
        "noise": draw(NOISES),
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
    return Case(
        params,
        made,
        flat=len(made.shape) > 1 and draw(st.booleans()),
        after_a_fit=draw(st.sampled_from([False, False, False, True])),
        method=draw(st.sampled_from(["fit", "fit", "fit", "partial_fit", "X_val"])),
        noise_scale=draw(st.one_of(st.just("estimate"), FACTORS)),
    )


# What must hold


def check_fitted(vae, X, n_epochs, noise_scale):
    """Whether all that a fitted estimator does with its training rows is in order."""
    if vae.module_.units.scale.max() > 1e30:
        X = X.astype(np.float64)  # in float32 there is no room for errors
    k, n = vae.n_components, len(X)
    exact = X.dtype in (np.float32, np.uint8, np.uint16)
    dtype = np.dtype(np.float32 if exact else np.float64)
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


def check_case(case):
    """Fit, and look at the model or at what is left of the one before."""
    params, X = case.make()
    vae = SigmaVAE(**params)
    if case.after_a_fit:
        vae = small_vae().fit(low_rank_rows()).set_params(**params)
    before, rows_before = Unchanged(vae), X.copy()
    state = torch.random.get_rng_state()
    if case.method == "partial_fit":
        outcome = documented(vae.partial_fit, X)
    else:
        X_val = X[:1] if case.method == "X_val" else None
        outcome = documented(vae.fit, X, X_val=X_val)
    assert torch.equal(torch.random.get_rng_state(), state)
    np.testing.assert_array_equal(X, rows_before)
    if isinstance(outcome, Exception):
        continues = case.after_a_fit and case.method == "partial_fit"
        assert continues or not case.must_succeed, outcome
        before.check()
        return
    assert all(vae.get_params()[name] is value for name, value in params.items())
    n_epochs = case.params["max_iter"] if case.method != "partial_fit" else 1
    continued = case.after_a_fit and (vae.warm_start or case.method == "partial_fit")
    check_fitted(vae, X, n_epochs + 3 * continued, case.noise_scale)


@given(case=cases())
@settings(**PROFILE, max_examples=60)
def test_a_fit_gives_a_finite_model_or_a_documented_error(case):
    check_case(case)


@pytest.mark.slow
@given(case=cases())
@settings(**PROFILE, max_examples=2000)
def test_many_fits_give_a_finite_model_or_a_documented_error(case):
    check_case(case)


# Found here


@pytest.mark.parametrize("shape", [(2, 2), (4, 1), (1, 4)])
def test_scales_in_the_shape_of_an_image_are_those_of_its_rows(shape):
    rows, sigma = low_rank_rows(n_features=4), np.array([0.1, 0.2, 0.3, 0.4])
    flat = small_vae(sigma=sigma).fit(rows)
    vae = small_vae(sigma=sigma.reshape(shape)).fit(rows.reshape(-1, *shape))
    rows[0, 0] = math.nan
    restored = vae.denoise(rows.reshape(-1, *shape), noise_scale=None)
    expected = flat.denoise(rows, noise_scale=None)
    np.testing.assert_array_equal(restored.reshape(rows.shape), expected)


@pytest.mark.parametrize(
    ("noise", "noise_scale"), [("gaussian", 1e-10), (GeneralizedNormalNoise(8.0), 1e-3)]
)
def test_steep_gradients_leave_no_gaps(noise, noise_scale):
    rows = low_rank_rows()
    vae = small_vae(noise=noise, init="random").fit(rows)
    for array in (
        vae.denoise(rows, noise_scale=noise_scale),
        *vae.posterior(rows, noise_scale=noise_scale),
    ):
        assert np.isfinite(array).all()


def test_the_scale_of_the_noise_of_constant_rows_is_a_number():
    rows = np.zeros((10, 5))
    vae = small_vae(noise=GeneralizedNormalNoise(8.0), init="random").fit(rows)
    assert vae.estimate_noise_scale(rows) >= 0
