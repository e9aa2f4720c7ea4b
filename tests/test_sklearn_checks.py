"""scikit-learn's own checks, with no expected failure."""

import pytest
from sklearn.utils import estimator_checks
from sklearn.utils.estimator_checks import parametrize_with_checks

from sklearn_sigmavae import MixturePrior, SigmaVAE

# Data of the checks is often constant or small beside sigma=1, and has fewer columns
# than there are components; the warnings that say so are tested where they belong.
pytestmark = [
    pytest.mark.filterwarnings("ignore:No component is in use at the start"),
    pytest.mark.filterwarnings("ignore:X is constant"),
    pytest.mark.filterwarnings("ignore:sigma='mle' reached its lower limit"),
    # Transforming arrays after fitting data frames, as these checks do, warns always.
    pytest.mark.filterwarnings("ignore:X does not have valid feature names"),
    pytest.mark.filterwarnings("ignore:X has feature names, but"),
    # check_array_api_input, where the environment does not turn that mode on.
    pytest.mark.filterwarnings("ignore:.*SCIPY_ARRAY_API is not set"),
]

WIDE = {"hidden_layer_sizes": (512, 512)}
VARIANTS = [
    {"noise": "laplace"},
    {"sigma": "mle"},
    {"init": "random"},
    {"prior": MixturePrior(2)},
    WIDE,
]

# The checks are of contracts, which few epochs of a small network keep or break.
QUICK = {"hidden_layer_sizes": (8,), "max_iter": 1}

# Checks that scikit-learn runs on its own estimators only.
MORE_CHECKS = [
    estimator_checks.check_set_output_transform,
    estimator_checks.check_set_output_transform_pandas,
    estimator_checks.check_set_output_transform_polars,
    estimator_checks.check_global_set_output_transform_polars,
    estimator_checks.check_global_output_transform_pandas,
    estimator_checks.check_transformer_get_feature_names_out,
    estimator_checks.check_transformer_get_feature_names_out_pandas,
    estimator_checks.check_get_feature_names_out_error,
    estimator_checks.check_dataframe_column_names_consistency,
    estimator_checks.check_param_validation,
]


@parametrize_with_checks([SigmaVAE(), *(SigmaVAE(**QUICK | v) for v in VARIANTS)])
def test_check_estimator(estimator, check):
    check(estimator)


@pytest.mark.slow
@parametrize_with_checks([SigmaVAE(**variant) for variant in VARIANTS])
def test_check_estimator_with_all_epochs(estimator, check):
    check(estimator)


@pytest.mark.parametrize(
    "variant",
    # What is around the codes does not depend on the network.
    [{}, *VARIANTS[:-1], pytest.param(WIDE, marks=pytest.mark.slow)],
    ids=str,
)
@pytest.mark.parametrize("check", MORE_CHECKS, ids=lambda check: check.__name__)
def test_more_checks(check, variant):
    check("SigmaVAE", SigmaVAE(**QUICK | variant))
