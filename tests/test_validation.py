"""Bad input: a clear error before training, and nothing has changed after it."""

import re
from contextlib import contextmanager

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from sklearn.exceptions import NotFittedError
from small_vae import EpochRecorder, Unchanged, low_rank_rows, small_vae
from torch import nn

from sklearn_sigmavae import GeneralizedNormalNoise, SigmaVAE
from sklearn_sigmavae.networks import MLP

X = low_rank_rows()
N_FEATURES = X.shape[1]

INFERENCE = ["transform", "score", "score_samples", "posterior", "kl_divergence"]
INFERENCE += ["denoise", "estimate_noise_scale", "inverse_transform"]


@pytest.fixture(params=["unfitted", "fitted"])
def vae(request):
    """An estimator that must be the same after a failure."""
    return small_vae() if request.param == "unfitted" else small_vae().fit(X)


@contextmanager
def raises(estimator, error, match):
    """Context of a call that fails, and leaves an estimator as it was."""
    with Unchanged(estimator), pytest.raises(error, match=match) as info:
        yield info


def _with(value, dtype=np.float64):
    rows = X.astype(dtype)
    rows[3, 1] = value
    return rows


BAD_DATA = {
    "inf": (_with(np.inf), ValueError, "infinity"),
    "-inf in float32": (_with(-np.inf, np.float32), ValueError, "infinity"),
    "strings": (np.full((9, 5), "five"), ValueError, "could not convert|numeric"),
    "mixed objects": (_with("five", object), ValueError, "could not convert"),
    "sparse": (scipy.sparse.csr_matrix(X), TypeError, "[Ss]parse"),
    "complex": (X + 1j, ValueError, "[Cc]omplex"),
    "1-d": (X[:, 0], ValueError, "2D array"),
    "5-d": (X[:6].reshape(2, 3, 1, 1, 5), ValueError, r"shape \(3, 1, 1, 5\)|dim 5"),
    "scalar": (3.0, ValueError, "2D array"),
    "no rows": (X[:0], ValueError, "0 sample"),
    "no columns": (X[:, :0], ValueError, "0 feature"),
    "no data": (None, ValueError, "2D array"),
    "ragged": ([[1.0, 2.0], [3.0]], ValueError, "one shape|inhomogeneous"),
    "dict": ({"a": 1}, (TypeError, ValueError), "dict"),
    "overflow": (1e308 * np.sign(X - 1), ValueError, "not finite in float64"),
}


# scikit-learn's own check of huge numbers warns.
@pytest.mark.filterwarnings("ignore:invalid value encountered in reduce")
@pytest.mark.parametrize("method", ["fit", "partial_fit", "fit_transform"])
@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data_is_refused(vae, no_training, method, case):
    data, error, message = BAD_DATA[case]
    if method == "partial_fit" and hasattr(vae, "net_") and "overflow" in case:
        pytest.skip("the units are those of the first call")
    with raises(vae, error, message):
        getattr(vae, method)(data)


@pytest.mark.parametrize("method", INFERENCE)
@pytest.mark.parametrize("case", [case for case in BAD_DATA if "overflow" not in case])
def test_bad_data_is_refused_by_inference(method, case):
    data, error, message = BAD_DATA[case]
    vae = small_vae(n_components=N_FEATURES).fit(X)
    with raises(vae, error, message):
        getattr(vae, method)(data)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_infinity_beside_gaps_is_refused(vae, no_training, dtype):
    rows = _with(np.nan, dtype)
    rows[5, 2] = np.inf
    for method in ("fit", "partial_fit"):
        with raises(vae, ValueError, "X contains infinity"):
            getattr(vae, method)(rows)
    with raises(vae, ValueError, "Input X_val contains inf"):
        vae.fit(X, X_val=rows)
    if hasattr(vae, "n_iter_"):
        for method in INFERENCE[:-1]:
            with raises(vae, ValueError, "X contains infinity"):
                getattr(vae, method)(rows)


@pytest.mark.parametrize("case", [case for case in BAD_DATA if "overflow" not in case])
def test_bad_held_out_rows_are_refused(vae, no_training, case):
    data, error, message = BAD_DATA[case]
    if data is None:
        pytest.skip("None stands for no held-out rows")
    with raises(vae, error, message):
        vae.fit(X, X_val=data)


def test_the_first_call_needs_two_rows(vae):
    with raises(vae, ValueError, "minimum of 2"):
        vae.fit(X[:1])
    if not hasattr(vae, "net_"):
        with raises(vae, ValueError, "minimum of 2"):
            vae.partial_fit(X[:1])

    # Later calls take one.
    assert small_vae().partial_fit(X).partial_fit(X[:1]).n_iter_ == 2


@pytest.mark.parametrize("method", [*INFERENCE[:-1], "partial_fit", "fit"])
def test_other_numbers_of_features_are_refused(method):
    vae = small_vae(warm_start=True).fit(X)
    message = f"X has 4 features, but SigmaVAE is expecting {N_FEATURES}"
    with raises(vae, ValueError, message):
        getattr(vae, method)(X[:, :4])
    with raises(vae, ValueError, "X_val has 4 features"):
        vae.fit(X, X_val=X[:, :4])


@pytest.mark.parametrize("n_columns", [1, 3])
def test_codes_of_another_dimension_are_refused(n_columns):
    vae = small_vae().fit(X)
    with pytest.raises(ValueError, match=f"Z has {n_columns} columns.*n_components=2"):
        vae.inverse_transform(np.zeros((4, n_columns)))


@pytest.mark.parametrize("method", [*INFERENCE, "get_feature_names_out", "sample"])
def test_inference_needs_a_fit(method):
    vae = SigmaVAE()
    args = () if method in ("get_feature_names_out", "sample") else (X,)
    with pytest.raises(NotFittedError, match="SigmaVAE"):
        getattr(vae, method)(*args)


# Parameters


class _HalfRecipe:
    def encoder(self, input_shape, n_components):
        return nn.Linear(*input_shape, 2 * n_components)


BAD_PARAMETERS = [
    *[("n_components", value) for value in (0, -1, 2.0, "2", None, [2], np.nan)],
    *[("sigma", value) for value in (0, 0.0, -1.0, np.nan, np.inf, -np.inf)],
    *[("sigma", value) for value in ("MLE", "0.3", None, {"a": 1})],
    *[("sigma", value) for value in ([0.1] * 4, [0.1] * 6, [[0.1] * 5], [], [0.3])],
    *[("sigma", [0.1, 0.2, 0.3, 0.4, bad]) for bad in (0.0, -1.0, np.nan, np.inf)],
    *[("sigma", [0.1, 0.2, 0.3, 0.4, bad]) for bad in ("x", None, 1j)],
    ("sigma", 0.3 + 0j),
    *[("beta", value) for value in (0, -1.0, np.nan, np.inf, "1", None, [1.0])],
    *[("noise", value) for value in ("normal", None, 2.0, GeneralizedNormalNoise)],
    *[("network", value) for value in ("cnn", None, nn.Linear(5, 4), _HalfRecipe())],
    ("network", MLP),
    *[("hidden_layer_sizes", value) for value in (0, -8, 8.0, "8", None)],
    *[("hidden_layer_sizes", value) for value in ((8, 0), (-1,), (8.0,), ("8",))],
    *[("hidden_layer_sizes", value) for value in ((None,), ((8,),), [[8, 8]])],
    *[("activation", value) for value in ("swish", None, nn.ReLU, 1)],
    *[("linear_path", value) for value in ("yes", None, 2)],
    *[("init", value) for value in ("PCA", None, np.zeros(3))],
    *[("optimizer", value) for value in ("lbfgs", None, 1)],
    *[("learning_rate", value) for value in (0, -1e-3, np.nan, np.inf, "auto", None)],
    *[("lr_schedule", value) for value in ("cosine", None)],
    *[("sigma_annealing", value) for value in (0.5, -1.0, np.nan, None, "auto")],
    *[("batch_size", value) for value in (0, -1, 2.5, "auto", None)],
    *[("max_iter", value) for value in (-1, 2.5, None, np.inf)],
    *[("early_stopping", value) for value in ("yes", None)],
    *[("validation_fraction", value) for value in (0, 0.0, 1.0, 1.5, -0.1, None, 2)],
    *[("n_iter_no_change", value) for value in (0, 1.5, None)],
    *[("tol", value) for value in (-1e-3, None, "x", np.nan)],
    *[("warm_start", value) for value in ("yes", None)],
    *[("callbacks", value) for value in (EpochRecorder(), "all", 3)],
    *[("device", value) for value in ("gpu", "meta", "cpu0", None, 0, "")],
    *[("random_state", value) for value in ("seed", -1, 1.5)],
    *[("verbose", value) for value in (-1, "yes", None)],
]


def value_id(value):
    """Name of a parameter's value, without the address that differs by process."""
    return re.sub(r" object at 0x\w+", "", str(value))


@pytest.mark.parametrize(("name", "value"), BAD_PARAMETERS, ids=value_id)
def test_bad_parameters_are_refused(vae, no_training, name, value):
    vae.set_params(**{name: value})
    with raises(vae, (ValueError, TypeError), f"'{name}'") as info:
        vae.fit(X)
    # A reader must be able to see what is wrong with what.
    assert re.search("SigmaVAE|MLP", str(info.value))
    assert len(str(info.value)) > 40
    if not hasattr(vae, "net_"):
        # scikit-learn validates parameters in the first call of partial_fit alone.
        with raises(vae, (ValueError, TypeError), f"'{name}'"):
            vae.partial_fit(X)


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is here")
@pytest.mark.parametrize("device", ["cuda", "cuda:0", torch.device("cuda")])
def test_devices_that_are_not_here_are_refused(vae, no_training, device):
    vae.set_params(device=device)
    with raises(vae, ValueError, r"'device'.*SigmaVAE.*cuda"):
        vae.fit(X)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"linear_path": False}, r"init='pca'.*linear_path"),
        *[
            ({"noise": GeneralizedNormalNoise(exponent)}, r"'exponent'.*Generalized")
            for exponent in (0.5, 0, -2.0, np.nan, np.inf, "2", None, [2.0])
        ],
    ],
    ids=str,
)
def test_parameters_that_make_no_model_are_refused(vae, no_training, params, message):
    vae.set_params(**params)
    with raises(vae, ValueError, message):
        vae.fit(X)


@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_bernoulli_noise_needs_data_between_zero_and_one(no_training, value):
    binary = (X > 1).astype(float)
    outside = binary.copy()
    outside[2, 2] = value
    vae = small_vae(noise="bernoulli")
    for call in (
        lambda: vae.fit(outside),
        lambda: vae.partial_fit(outside),
        lambda: vae.fit(binary, X_val=outside),
    ):
        with raises(vae, ValueError, r"\[0, 1\].*ranges from"):
            call()


@pytest.mark.parametrize("method", INFERENCE[:-1])
def test_bernoulli_scores_need_data_between_zero_and_one(method):
    binary = (X > 1).astype(float)
    vae = small_vae(noise="bernoulli").fit(binary)
    with pytest.raises(ValueError, match=r"\[0, 1\].*ranges from"):
        getattr(vae, method)(binary + 0.5)


@pytest.mark.parametrize(
    ("method", "name", "values"),
    [
        ("score_samples", "n_importance_samples", [0, -1, 1.5, "64"]),
        ("sample", "n_samples", [0, 2.0, "3"]),
        ("sample", "add_noise", ["yes"]),
        ("sample", "random_state", ["seed"]),
    ],
)
def test_bad_arguments_are_refused(method, name, values):
    vae = small_vae().fit(X)
    args = () if method == "sample" else (X,)
    for value in values:
        with pytest.raises(ValueError, match=f"'{name}'"):
            getattr(vae, method)(*args, **{name: value})


def test_feature_names_of_other_kinds_are_refused(no_training):
    frame = pd.DataFrame(X)
    frame.columns = ["a", "b", "c", "d", 5]
    vae = small_vae()
    with raises(vae, TypeError, "string"):
        vae.fit(frame)


# Training that diverges


@pytest.mark.parametrize(
    "params",
    [
        {"learning_rate": 1e30, "optimizer": "sgd"},
        {"learning_rate": 1e30, "early_stopping": False},
        {"max_iter": 1, "learning_rate": 1e30, "early_stopping": False}
        | {"batch_size": 100, "optimizer": "sgd"},
    ],
    ids=str,
)
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_divergence_is_an_error_that_names_the_way_out(vae, method, params):
    vae.set_params(**params)
    state = torch.random.get_rng_state()
    with raises(vae, ValueError, "diverged") as info:
        getattr(vae, method)(X)
    for name in ("learning_rate", "sigma", "batch_size"):
        assert re.search(rf"\b{name}\b", str(info.value))
    assert torch.equal(torch.random.get_rng_state(), state)
    # The estimator still works.
    vae.set_params(**small_vae().get_params()).fit(X)
    assert np.isfinite(vae.score(X))


def test_the_last_step_may_diverge_too():
    params = {"sigma": 1e-10, "optimizer": "sgd", "early_stopping": False}
    # One step, whose loss is that of the start.
    vae = small_vae(**params, max_iter=1, batch_size=100, hidden_layer_sizes=())
    with raises(vae, ValueError, r"diverged.* in epoch 1"):
        vae.fit(X)


@pytest.mark.parametrize("sigma", [1e-200, 1e200, 1e308, 5e-324])
@pytest.mark.parametrize("max_iter", [0, 3])
def test_a_sigma_in_other_units_than_the_data_raises(vae, sigma, max_iter):
    vae.set_params(sigma=sigma, max_iter=max_iter)
    with raises(vae, ValueError, r"\bsigma\b"):
        vae.fit(X)


def test_a_lazy_frame_is_to_be_collected():
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame(X, schema=list("abcde"))
    with pytest.raises(TypeError, match=r"LazyFrame.*X\.collect\(\)"):
        small_vae().fit(frame.lazy())
    assert small_vae().fit(frame).n_features_in_ == 5
