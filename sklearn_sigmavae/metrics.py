"""Scorers: what ``GridSearchCV`` and its kind can choose a model by.

Each takes ``(estimator, X, y=None)`` and returns a float; greater is better. Use them
as ``scoring=``, on a :class:`~sklearn_sigmavae.SigmaVAE` or on a pipeline that ends in
one. They can be pickled, and give the same number each time.
"""

from copy import deepcopy
from dataclasses import dataclass
from numbers import Integral

import numpy as np
from sklearn.base import clone
from sklearn.pipeline import Pipeline
from sklearn.utils import check_array, check_random_state
from sklearn.utils._param_validation import Interval, StrOptions, validate_params
from sklearn.utils.validation import _get_feature_names

from ._sigma_vae import SigmaVAE
from ._validation import as_samples, in_feature_order
from .noise import ALIASES, NoiseModel, resolve_noise

__all__ = [
    "denoising_scorer",
    "elbo_scorer",
    "importance_weighted_scorer",
    "reconstruction_scorer",
]

_NOISE_SCALE = "The 'noise_scale' parameter of denoising_scorer"


def elbo_scorer(estimator, X, y=None):
    """Mean bound on the log-likelihood of a row, in nats: ``estimator.score(X)``.

    It is the evidence lower bound [1]_. In a pipeline it is the density of what the
    last step sees, in those units. So it compares candidates that share their earlier
    steps, and not one scaler with another.

    Parameters
    ----------
    estimator : SigmaVAE, or pipeline that ends in one
        Fitted estimator. Other densities with ``score_samples`` in nats will do too,
        such as :class:`~sklearn.decomposition.PCA`.
    X : array-like of shape (n_samples, n_features), or images
        Clean data.
    y : Ignored
        Present for API consistency.

    Returns
    -------
    score : float
        In nats per row.

    Raises
    ------
    TypeError
        If the estimator has no ``score_samples``.
    NotFittedError
        If the estimator is not fitted.
    ValueError
        If `X` is not valid data for it.

    See Also
    --------
    importance_weighted_scorer : A tighter bound, which takes longer.
    denoising_scorer : What comes back from noisy data.

    References
    ----------
    .. [1] D. P. Kingma, M. Welling, "Auto-Encoding Variational Bayes",
       arXiv:1312.6114, 2014.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn_sigmavae import BatchedGridSearchCV, SigmaVAE
    >>> from sklearn_sigmavae.metrics import elbo_scorer
    >>> X = load_digits().data[:300]
    >>> vae = SigmaVAE(16, hidden_layer_sizes=(32,), max_iter=2, random_state=0)
    >>> search = BatchedGridSearchCV(vae, {"sigma": [2, 6]}, scoring=elbo_scorer, cv=2)
    >>> search.fit(X).best_params_
    {'sigma': 2}
    """
    _check_has("elbo_scorer", estimator, "score_samples")
    return float(np.mean(estimator.score_samples(X)))


def reconstruction_scorer(estimator, X, y=None):
    """Mean squared error of ``inverse_transform(transform(X))``, times minus one.

    The mean is over rows and features, in the units of `X`, through all steps of a
    pipeline. More components and smaller ``sigma`` nearly always reconstruct better, so
    it does not choose them; see :func:`denoising_scorer` for one that does. It is
    negative as all scorers of errors are [1]_: greater is better.

    Parameters
    ----------
    estimator : SigmaVAE, or pipeline that ends in one
        Fitted estimator. Others with ``transform`` and ``inverse_transform`` will do
        too, such as :class:`~sklearn.decomposition.PCA`, for comparison.
    X : array-like of shape (n_samples, n_features), or images
        Clean data.
    y : Ignored
        Present for API consistency.

    Returns
    -------
    score : float
        Never positive, in the squared units of `X`.

    Raises
    ------
    TypeError
        If the estimator, or a step of it, lacks ``transform`` or ``inverse_transform``.
    NotFittedError
        If the estimator is not fitted.
    ValueError
        If `X` is not valid data for it, or comes back in another shape.

    See Also
    --------
    denoising_scorer : The same from noisy data.
    elbo_scorer : The bound on the log-likelihood.

    References
    ----------
    .. [1] scikit-learn's user guide, "Metrics and scoring: quantifying the quality of
       predictions", https://scikit-learn.org/stable/modules/model_evaluation.html

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.model_selection import cross_val_score
    >>> from sklearn_sigmavae import SigmaVAE
    >>> from sklearn_sigmavae.metrics import reconstruction_scorer
    >>> X, _ = load_iris(return_X_y=True)
    >>> vae = SigmaVAE(2, sigma=0.2, max_iter=2, random_state=0)
    >>> scores = cross_val_score(vae, X, scoring=reconstruction_scorer, cv=3)
    >>> bool((scores < 0).all())
    True
    """
    _check_has("reconstruction_scorer", estimator, "transform", "inverse_transform")
    return -_squared_error(estimator, X, _as_numbers(X))


@validate_params(
    {
        "noise_scale": "no_validation",
        "noise": [StrOptions(set(ALIASES)), NoiseModel],
        "random_state": [Interval(Integral, 0, 2**32 - 1, closed="both")],
    },
    prefer_skip_nested_validation=True,
)
def denoising_scorer(noise_scale, *, noise="gaussian", random_state=0):
    """Scorer of how well clean data comes back from noisy data.

    It adds noise to `X`, and scores minus the mean squared error, against clean `X`, of
    ``inverse_transform(transform(noisy))``: what a denoising autoencoder [1]_ is
    trained for, and a :class:`~sklearn_sigmavae.SigmaVAE` is not. The mean is over rows
    and features, in the units of `X`, through all steps of a pipeline. The same `X`
    always gets the same noise, so candidates are compared on the same noisy rows.

    Parameters
    ----------
    noise_scale : float, or array-like of shape (n_features,)
        Scale of the noise in the units of `X`, one for all features or one for each
        (an array of the shape of a sample will do too). A Series is matched to the
        columns of `X` by name.
    noise : {"gaussian", "laplace"} or NoiseModel, default="gaussian"
        Distribution of the noise to add; it need not be that of the estimator.
    random_state : int, default=0
        Source of the noise.

    Returns
    -------
    scorer : callable
        Takes ``(estimator, X, y=None)`` and returns a float, never positive, in the
        squared units of `X`. It raises ``TypeError`` if the estimator lacks
        ``transform`` or ``inverse_transform``, and ``ValueError`` if `X` has another
        number of features than `noise_scale`.

    Raises
    ------
    ValueError
        If a scale is not positive and finite, the noise model has none, or another
        parameter is not valid.

    See Also
    --------
    reconstruction_scorer : The same without noise.
    sklearn_sigmavae.SigmaVAE.denoise : Reads noisy data through the posterior.

    Notes
    -----
    Noisy rows go through ``transform``, that is, through the encoder, which has learnt
    from clean data, and not through the posterior given noisy data. So the ``sigma``
    that this chooses is the one whose codes survive such noise, which is not the one of
    the greatest likelihood, and need not equal `noise_scale`: for a component of
    variance λ in the linear model, the best σ² is s²λ / (λ + s²) for noise of scale s.

    Noisy data leaves [0, 1], so ``SigmaVAE(noise="bernoulli")`` refuses it.

    References
    ----------
    .. [1] P. Vincent, H. Larochelle, Y. Bengio, P.-A. Manzagol, "Extracting and
       Composing Robust Features with Denoising Autoencoders", ICML 2008.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn_sigmavae import BatchedGridSearchCV, SigmaVAE
    >>> from sklearn_sigmavae.metrics import denoising_scorer
    >>> X = load_digits().data[:300]
    >>> vae = SigmaVAE(16, hidden_layer_sizes=(32,), max_iter=2, random_state=0)
    >>> scorer = denoising_scorer(10)
    >>> scorer
    denoising_scorer(10.0, noise='gaussian', random_state=0)
    >>> search = BatchedGridSearchCV(vae, {"sigma": [2, 6]}, scoring=scorer, cv=2)
    >>> search.fit(X).best_params_
    {'sigma': 6}
    """
    if not resolve_noise(noise).has_scale:
        raise ValueError(
            f"The 'noise' parameter of denoising_scorer, {noise!r}, has no scale; use "
            "a noise model with one, such as 'gaussian'."
        )
    # A copy: a search over noise__exponent must not change the scorer.
    noise = noise if isinstance(noise, str) else clone(noise)
    return _DenoisingScorer(_check_noise_scale(noise_scale), noise, int(random_state))


@validate_params(
    {"n_importance_samples": [Interval(Integral, 1, None, closed="left")]},
    prefer_skip_nested_validation=True,
)
def importance_weighted_scorer(n_importance_samples=100):
    """Scorer of the importance-weighted bound, the mean of ``score_samples``.

    The bound [1]_ is nearer to the log-likelihood than :func:`elbo_scorer` and takes
    longer, in proportion to the samples. In a pipeline it is the density of what the
    last step sees, in those units.

    Parameters
    ----------
    n_importance_samples : int, default=100
        Number of samples. With 1 the scorer is :func:`elbo_scorer`.

    Returns
    -------
    scorer : callable
        Takes ``(estimator, X, y=None)`` and returns a float, in nats per row. It raises
        ``TypeError`` if the estimator is neither a SigmaVAE nor a pipeline that ends in
        one.

    Raises
    ------
    ValueError
        If `n_importance_samples` is no integer of at least 1.

    See Also
    --------
    elbo_scorer : The plain bound.

    References
    ----------
    .. [1] Y. Burda, R. Grosse, R. Salakhutdinov, "Importance Weighted Autoencoders",
       arXiv:1509.00519, 2016.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_sigmavae import SigmaVAE
    >>> from sklearn_sigmavae.metrics import importance_weighted_scorer
    >>> X, _ = load_iris(return_X_y=True)
    >>> vae = SigmaVAE(2, sigma=0.3, max_iter=2, random_state=0).fit(X)
    >>> scorer = importance_weighted_scorer(50)
    >>> scorer
    importance_weighted_scorer(50)
    >>> abs(scorer(vae, X) - vae.score(X)) < 0.5
    True
    """
    return _ImportanceWeightedScorer(int(n_importance_samples))


# The scorers are objects, not closures, so that they can be sent to other processes.
# Scales may be arrays, which have no single truth value to compare by.


@dataclass(frozen=True, eq=False, repr=False)
class _DenoisingScorer:
    noise_scale: object
    noise: str | NoiseModel
    random_state: int

    def __call__(self, estimator, X, y=None):
        _check_has("denoising_scorer", estimator, "transform", "inverse_transform")
        clean = _as_numbers(X)
        # A new generator for each call: the same rows get the same noise.
        random_state = check_random_state(self.random_state)
        scale = self._scale_of(clean.shape[1:], _get_feature_names(X))
        noisy = resolve_noise(self.noise).sample(clean, scale, random_state)
        noisy = _like(X, noisy.astype(clean.dtype, copy=False))
        return -_squared_error(estimator, noisy, clean)

    def _scale_of(self, sample_shape, names):
        scale = in_feature_order(self.noise_scale, names, _NOISE_SCALE)
        if not np.ndim(scale):
            return scale
        shapes = (int(np.prod(sample_shape)),), sample_shape
        if scale.shape not in shapes:
            raise ValueError(
                f"{_NOISE_SCALE} must have one scale per feature, shape "
                f"{' or '.join(map(str, dict.fromkeys(shapes)))} for this X. Got shape "
                f"{scale.shape} instead."
            )
        return scale.reshape(sample_shape)

    def __repr__(self):
        scale = self.noise_scale
        if np.ndim(scale):
            scale = np.asarray(in_feature_order(scale, None, _NOISE_SCALE))
            scale = np.array2string(scale, separator=", ", threshold=8, edgeitems=2)
            scale = " ".join(scale.split())
        return (
            f"denoising_scorer({scale}, noise={self.noise!r}, "
            f"random_state={self.random_state})"
        )


@dataclass(frozen=True, repr=False)
class _ImportanceWeightedScorer:
    n_importance_samples: int

    def __call__(self, estimator, X, y=None):
        vae = estimator
        while isinstance(vae, Pipeline):
            vae = vae[-1]
        if not isinstance(vae, SigmaVAE):
            raise TypeError(
                "importance_weighted_scorer needs a SigmaVAE or a Pipeline whose last "
                f"step is one. Got {type(estimator).__name__} instead"
                + ("." if vae is estimator else f", which ends in {vae!r}.")
            )
        # Pipeline.score_samples takes no keyword, so the earlier steps run here.
        while isinstance(estimator, Pipeline):
            if len(estimator) > 1:
                X = estimator[:-1].transform(X)
            estimator = estimator[-1]
        scores = vae.score_samples(X, n_importance_samples=self.n_importance_samples)
        return float(scores.mean())

    def __repr__(self):
        return f"importance_weighted_scorer({self.n_importance_samples})"


def _check_noise_scale(noise_scale):
    """Scales that are positive and finite, copied: a float, an array, or with labels.

    Which feature a label stands for is known when there is data.
    """
    plain = in_feature_order(noise_scale, None, _NOISE_SCALE)
    try:
        scale = np.array(plain, dtype=np.float64)
        valid = scale.size and np.isfinite(scale).all() and (scale > 0).all()
    except (TypeError, ValueError):
        valid = False
    if not valid:
        raise ValueError(
            f"{_NOISE_SCALE} must be a positive, finite number in the units of X, or "
            f"one per feature. Got {noise_scale!r} instead."
        )
    if plain is not noise_scale:
        return deepcopy(noise_scale)
    return scale if scale.ndim else float(scale)


def _check_has(scorer, estimator, *methods):
    # Of a pipeline this asks each step.
    lacking = [method for method in methods if not hasattr(estimator, method)]
    if lacking:
        raise TypeError(
            f"{scorer} needs an estimator with {' and '.join(methods)}, such as a "
            "SigmaVAE, or a Pipeline of steps that allow it. Got "
            f"{type(estimator).__name__}, which lacks {' and '.join(lacking)}."
        )


def _as_numbers(X):
    """Data as an array of floats, float32 where the estimator computes in it."""
    dtype = [np.float64, np.float32, np.uint8, np.uint16]
    X = check_array(
        as_samples(X), dtype=dtype, ensure_2d=False, allow_nd=True, input_name="X"
    )
    return X.astype(np.float32) if X.dtype.kind == "u" else X


def _like(X, values):
    """Values in the container of `X`, whose column names the estimator may know."""
    if hasattr(X, "iloc"):  # pandas
        return type(X)(values, index=X.index, columns=X.columns)
    if hasattr(X, "with_columns"):  # polars
        return type(X)(values, schema=X.columns, orient="row")
    return values


def _squared_error(estimator, X, target):
    """Mean squared error of what comes back of `X`, over rows and features."""
    restored = np.asarray(estimator.inverse_transform(estimator.transform(X)))
    # Otherwise they might broadcast, to a number that means nothing.
    if restored.shape != target.shape:
        raise ValueError(
            "inverse_transform must return the shape of X to compare with it. Got "
            f"{restored.shape} for X of shape {target.shape}; does a step of the "
            "pipeline change the shape and not change it back?"
        )
    residual = np.subtract(restored, target, dtype=np.float64).ravel()
    return float(residual @ residual / residual.size)
