"""What tests of random calls share: what may be refused, and what must hold."""

import atexit
import re
import tempfile
import warnings

import numpy as np
from hypothesis import HealthCheck, Phase, configuration
from small_vae import same_weights, weights

from sklearn_sigmavae import DivergenceError

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

# What may be refused, and in which words.
ERRORS = [
    r"Input (X|X_val|Z) contains (NaN|infinity or a value too large)",
    r"Found array with \d+ sample\(s\) .* while a minimum of \d is required",
    r"X has \d+ features, but SigmaVAE is expecting \d+ features",
    r"X(_val)? has samples of shape .*, but SigmaVAE is fitted on samples of shape",
    r"X must have shape \(n_samples, n_features\), or that of images",
    r"The spread of X is not finite in float64: its values are too large",
    r"X has entries too far from the training data ",
    r"The '(sigma|image_shape)' parameter of SigmaVAE",
    r"'noise_scale' must be positive and finite",
    r"noise_scale is \S+ times the scale of the data, out of the range of float32",
    r"noise='bernoulli' needs data in \[0, 1\], but X ranges from",
    r"Noise of a scale needs noise models that have one",
    r"The noise of this model, BernoulliNoise\(\), has no scale",
    r"init='pca' starts the linear path, which linear_path=False removes",
    r"The convolutional network of SigmaVAE needs images of at least 4 x 4 pixels",
    r"Training diverged: (the loss is|the weights are) no longer finite",
    r"Training diverged: the bound fell from .* to .* nats per row",
    r"Training diverged since its rows are far larger than those of the first chunk",
    r"A fit that continues from an earlier one .* cannot change ",
]

WARNINGS = [
    r"X is constant: no component has anything to encode",
    r"No component is in use at the start: sigma=",
    r"sigma='mle' reached its lower limit",
    r"No epoch improved on the start",
    r"The held-out bound was still rising",
    r"Residuals of typical rows are",
    r"Column \d reaches .* times sigma from its mean",
    r"These rows are far (larger|smaller)",
    r"The first chunk has \d rows",
    r"X_val lies far outside of X",
]


def assert_documented(error):
    assert type(error) in (ValueError, TypeError, DivergenceError), repr(error)
    assert any(re.match(known, str(error), re.DOTALL) for known in ERRORS), repr(error)


def documented(call, *args, **kwargs):
    """What a call returns, or the documented error that it raises."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = call(*args, **kwargs)
        except (ValueError, TypeError) as error:
            assert_documented(error)
            result = error
    for warning in caught:
        known = any(re.match(known, str(warning.message)) for known in WARNINGS)
        assert known, f"{warning.category.__name__}: {warning.message}"
    return result


class Unchanged:
    """What an estimator is, to compare with what it is later."""

    def __init__(self, vae):
        self.vae = vae
        self.attributes = vars(vae).copy()
        self.weights = weights(vae) if hasattr(vae, "net_") else {}
        self.n_epochs = len(vae.history_) if hasattr(vae, "net_") else 0

    def check(self):
        now = vars(self.vae)
        assert list(now) == list(self.attributes)
        assert all(now[name] is value for name, value in self.attributes.items())
        if self.weights:
            assert same_weights(weights(self.vae), self.weights)
            assert len(self.vae.history_) == self.n_epochs


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
