"""Scorers for ``scoring=``, of a ``SigmaVAE`` or a pipeline that ends in one.

Each takes ``(estimator, X, y=None)`` and returns a float, the same each time; greater
is better. They can be pickled.
"""

import reprlib
from copy import deepcopy
from dataclasses import dataclass
from numbers import Integral

import numpy as np
from sklearn.pipeline import Pipeline
from sklearn.utils import check_array, check_random_state
from sklearn.utils._param_validation import Interval
from sklearn.utils.validation import _get_feature_names

from ._validation import (
    COUNT,
    DTYPES,
    FRACTION,
    as_samples,
    check_params,
    check_scales,
)
from ._wrapped import through_pipeline
from .noise import ANY_NOISE, NoiseModel, resolve_noise

__all__ = [
    "denoising_scorer",
    "elbo_scorer",
    "importance_weighted_scorer",
    "imputation_scorer",
    "reconstruction_scorer",
]

_SEED = Interval(Integral, 0, 2**32 - 1, closed="both")
_NOISE_SCALE = "The 'noise_scale' parameter of denoising_scorer"


def elbo_scorer(estimator, X, y=None):
    """Mean evidence lower bound of a row, in nats: ``estimator.score(X)``.

    In a pipeline it is the density of what the last step gets, in those units, and does
    not compare different earlier steps.

    Parameters
    ----------
    estimator : SigmaVAE, or pipeline that ends in one
        Fitted estimator, or another density with ``score_samples`` in nats, such as
        :class:`~sklearn.decomposition.PCA`.
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
    TypeError, NotFittedError, ValueError
        If the estimator has no ``score_samples``, is not fitted, or `X` is not valid
        data for it.

    See Also
    --------
    importance_weighted_scorer : A tighter bound, which takes longer.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn_sigmavae import SigmaVAE
    >>> from sklearn_sigmavae.metrics import elbo_scorer
    >>> X = load_digits().data
    >>> vae = SigmaVAE(16, sigma=2.0, max_iter=2, random_state=0).fit(X)
    >>> elbo_scorer(vae, X) == vae.score(X)
    True
    """
    _check_has(estimator, "score_samples")
    return float(np.mean(estimator.score_samples(X)))


def reconstruction_scorer(estimator, X, y=None):
    """Negative mean squared error of ``inverse_transform(transform(X))``.

    The mean is over rows and features, through all steps of a pipeline. It does not
    choose ``sigma`` or the number of components, since smaller and more nearly always
    reconstruct better; :func:`denoising_scorer` does.

    Parameters
    ----------
    estimator : SigmaVAE, or pipeline that ends in one
        Fitted estimator, or another with ``transform`` and ``inverse_transform``, such
        as :class:`~sklearn.decomposition.PCA`.
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
    TypeError, NotFittedError, ValueError
        If the estimator, or a step of it, lacks ``transform`` or ``inverse_transform``,
        is not fitted, or `X` is not valid data for it or comes back in another shape.

    See Also
    --------
    denoising_scorer : The same from noisy data.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.model_selection import cross_val_score
    >>> from sklearn_sigmavae import SigmaVAE
    >>> from sklearn_sigmavae.metrics import reconstruction_scorer
    >>> X, _ = load_iris(return_X_y=True)
    >>> cross_val_score(SigmaVAE(2, max_iter=2), X, scoring=reconstruction_scorer).shape
    (5,)
    """
    return -_squared_error(estimator, X, _as_floats(X))


@check_params({"noise": ANY_NOISE, "random_state": [_SEED]})
def denoising_scorer(noise_scale, *, noise="gaussian", random_state=0):
    """Scorer of how well clean data is restored from noisy data.

    The scorer adds noise to `X` and returns the negative mean squared error of
    ``inverse_transform(transform(noisy))`` against clean `X`, as
    :func:`reconstruction_scorer` does. The same `X` always gets the same noise.

    Parameters
    ----------
    noise_scale : float, or array-like of shape (n_features,)
        Scale of the noise in the units of `X`, one for all features or one for each
        (or an array of the shape of a sample). A Series is matched to the columns of
        `X` by name.
    noise : {"gaussian", "laplace"} or NoiseModel, default="gaussian"
        Distribution of the noise to add; it need not be that of the estimator.
    random_state : int, default=0
        Source of the noise.

    Returns
    -------
    scorer : callable
        Takes ``(estimator, X, y=None)`` and returns a float, never positive, in the
        squared units of `X`. It raises as :func:`reconstruction_scorer` does.

    Raises
    ------
    ValueError
        If a scale is not positive and finite, the noise model has none, or another
        parameter is not valid.

    See Also
    --------
    reconstruction_scorer : The same without noise.
    sklearn_sigmavae.SigmaVAE.denoise : Restores noisy data through the posterior.

    Notes
    -----
    Noisy rows go through the encoder, not through the posterior given noisy data. So
    the best ``sigma`` need not equal `noise_scale`: for a component of variance λ in
    the linear model, the best σ² is s²λ / (λ + s²) for noise of scale s. Noisy data
    leaves [0, 1], so a SigmaVAE with Bernoulli noise refuses it.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn_sigmavae import BatchedGridSearchCV, SigmaVAE
    >>> from sklearn_sigmavae.metrics import denoising_scorer
    >>> vae = SigmaVAE(16, hidden_layer_sizes=(32,), max_iter=2, random_state=0)
    >>> grid, scoring = {"sigma": [2, 6]}, denoising_scorer(10)
    >>> search = BatchedGridSearchCV(vae, grid, scoring=scoring, cv=2)
    >>> search.fit(load_digits().data[:300]).best_params_
    {'sigma': 6}
    """
    if not resolve_noise(noise).has_scale:
        raise ValueError(
            f"The 'noise' parameter of denoising_scorer, {noise!r}, has no scale; use "
            "a noise model with one, such as 'gaussian'."
        )
    check_scales(noise_scale, None, None, _NOISE_SCALE)
    # Copies: a search over noise__exponent must not change the scorer.
    noise_scale, noise = deepcopy((noise_scale, noise))
    return _DenoisingScorer(noise_scale, noise, int(random_state))


@check_params({"n_importance_samples": [COUNT]})
def importance_weighted_scorer(n_importance_samples=100):
    """Scorer of the importance-weighted bound, the mean of ``score_samples``.

    The bound [1]_ is nearer to the log-likelihood than :func:`elbo_scorer`, takes
    longer, and is that of the last step of a pipeline too.

    Parameters
    ----------
    n_importance_samples : int, default=100
        Number of samples. With 1 the scorer is :func:`elbo_scorer`.

    Returns
    -------
    scorer : callable
        Takes ``(estimator, X, y=None)`` and returns a float, in nats per row. It raises
        ``TypeError`` if the last step of a pipeline is not a SigmaVAE.

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
    >>> abs(importance_weighted_scorer(50)(vae, X) - vae.score(X)) < 0.5
    True
    """
    return _ImportanceWeightedScorer(int(n_importance_samples))


@check_params({"missing_fraction": [FRACTION], "random_state": [_SEED]})
def imputation_scorer(missing_fraction=0.2, *, random_state=0):
    """Scorer of how well missing entries are filled.

    The scorer hides some of the known entries of `X`, lets the estimator fill the gaps,
    and returns the negative mean squared error of what it fills in for the hidden
    entries. Entries that are missing, NaN, stay so and do not count. The same `X`
    always has the same entries hidden.

    Parameters
    ----------
    missing_fraction : float, default=0.2
        Probability with which each known entry is hidden. One entry of each row is
        always left.
    random_state : int, default=0
        Source of which entries are hidden.

    Returns
    -------
    scorer : callable
        Takes ``(estimator, X, y=None)`` and returns a float, never positive, in the
        squared units of `X`. The estimator is a :class:`~sklearn_sigmavae.SigmaVAE`, a
        :class:`~sklearn_sigmavae.SigmaVAEImputer` or another imputer, or a pipeline
        that ends in one: what it fills in goes back through the ``inverse_transform``
        of the other steps. The scorer raises ``TypeError`` if these or the estimator
        lack a method, and ``ValueError`` if nothing can be hidden, gaps are left, or
        other columns come back.

    Raises
    ------
    ValueError
        If a parameter is not valid.

    See Also
    --------
    denoising_scorer : The same for noise.
    sklearn_sigmavae.SigmaVAEImputer : Fills gaps.

    Notes
    -----
    Columns with large numbers count most. Standardize columns in different units before
    the search.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.model_selection import GridSearchCV
    >>> from sklearn_sigmavae import SigmaVAE, SigmaVAEImputer
    >>> from sklearn_sigmavae.metrics import imputation_scorer
    >>> X, _ = load_iris(return_X_y=True)
    >>> vae = SigmaVAE(2, hidden_layer_sizes=(16,), max_iter=2, random_state=0)
    >>> grid, scoring = {"estimator__sigma": [0.2, 1]}, imputation_scorer()
    >>> search = GridSearchCV(SigmaVAEImputer(vae), grid, scoring=scoring)
    >>> search.fit(X).best_params_
    {'estimator__sigma': 0.2}
    """
    return _ImputationScorer(float(missing_fraction), int(random_state))


# The scorers are objects, not closures, so that they can be pickled. Scales may be
# arrays, which do not compare to one truth value.


@dataclass(frozen=True, eq=False, repr=False)
class _DenoisingScorer:
    noise_scale: object
    noise: str | NoiseModel
    random_state: int

    def __call__(self, estimator, X, y=None):
        clean = _as_floats(X)
        shape, n_features = clean.shape[1:], clean[0].size
        # Labels are matched to the names of the features.
        names, shapes = _get_feature_names(X), dict.fromkeys([(), (n_features,), shape])
        scale = check_scales(self.noise_scale, shapes, names, _NOISE_SCALE)
        scale = scale.reshape(shape) if scale.ndim else float(scale)
        # A new generator for each call: the same rows get the same noise.
        random_state = check_random_state(self.random_state)
        noisy = resolve_noise(self.noise).sample(clean, scale, random_state)
        noisy = _like(X, noisy.astype(clean.dtype, copy=False))
        return -_squared_error(estimator, noisy, clean)

    def __repr__(self):
        scale = np.asarray(self.noise_scale, dtype=np.float64)
        scale = reprlib.repr(scale.ravel().tolist() if scale.ndim else float(scale))
        keywords = f"noise={self.noise!r}, random_state={self.random_state}"
        return f"denoising_scorer({scale}, {keywords})"


@dataclass(frozen=True, repr=False)
class _ImportanceWeightedScorer:
    n_importance_samples: int

    def __call__(self, estimator, X, y=None):
        # Pipeline.score_samples takes no keyword, so the earlier steps run here.
        while isinstance(estimator, Pipeline):
            if len(estimator) > 1:
                X = estimator[:-1].transform(X)
            estimator = estimator[-1]
        _check_has(estimator, "score_samples")
        n_samples = self.n_importance_samples
        return float(estimator.score_samples(X, n_importance_samples=n_samples).mean())

    def __repr__(self):
        return f"importance_weighted_scorer({self.n_importance_samples})"


@dataclass(frozen=True, repr=False)
class _ImputationScorer:
    missing_fraction: float
    random_state: int

    def __call__(self, estimator, X, y=None):
        known = _as_floats(X, ensure_all_finite="allow-nan")
        hidden = self._choose(known.reshape(len(known), -1)).reshape(known.shape)
        if not hidden.any():
            raise ValueError(
                "The scorer has no entry to hide, since one known entry of each row is "
                "left. Pass rows with more of them, more rows, or a greater "
                f"missing_fraction than {self.missing_fraction:g}."
            )
        gaps = _like(X, np.where(hidden, np.nan, known))
        filled = np.asarray(through_pipeline(estimator, gaps, _fill))
        if filled.shape != known.shape:
            raise ValueError(
                f"The estimator returned shape {filled.shape} for X of shape "
                f"{known.shape}. Imputers must keep empty columns and add none."
            )
        if np.isnan(filled[hidden]).any():
            raise ValueError("The estimator left some of the hidden entries missing.")
        return -_mean_square(filled[hidden], known[hidden])

    def _choose(self, rows):
        """Which entries to hide; rows keep the one with the greatest number."""
        numbers = check_random_state(self.random_state).uniform(size=rows.shape)
        numbers[np.isnan(rows)] = -1
        hidden = (numbers >= 0) & (numbers < self.missing_fraction)
        hidden[np.arange(len(rows)), numbers.argmax(axis=1)] = False
        return hidden

    def __repr__(self):
        keywords = f"random_state={self.random_state}"
        return f"imputation_scorer({self.missing_fraction:g}, {keywords})"


def _check_has(estimator, *methods):
    # A pipeline has a method if its steps do.
    lacking = [method for method in methods if not hasattr(estimator, method)]
    if lacking:
        raise TypeError(
            f"The scorer needs an estimator with {' and '.join(methods)}. Got "
            f"{type(estimator).__name__}, which lacks {' and '.join(lacking)}."
        )


def _as_floats(X, **kwargs):
    """Data as an array of floats, float32 where the estimator computes in it."""
    kwargs |= {"ensure_2d": False, "allow_nd": True, "input_name": "X"}
    X = check_array(as_samples(X), dtype=DTYPES, **kwargs)
    return X.astype(np.float32) if X.dtype.kind == "u" else X


def _like(X, values):
    """Values in the container of `X`, whose column names the estimator may know."""
    if hasattr(X, "iloc"):  # pandas
        return type(X)(values, index=X.index, columns=X.columns)
    if hasattr(X, "with_columns"):  # polars
        return type(X)(values, schema=X.columns, orient="row")
    return values


def _squared_error(estimator, X, target):
    """Mean squared error of reconstructions of `X`, over rows and features."""
    _check_has(estimator, "transform", "inverse_transform")
    restored = np.asarray(estimator.inverse_transform(estimator.transform(X)))
    # Other shapes might broadcast, to a number that means nothing.
    if restored.shape != target.shape:
        raise ValueError(
            f"inverse_transform returned shape {restored.shape} for X of shape "
            f"{target.shape}. Does a step of the pipeline not restore the shape?"
        )
    return _mean_square(restored, target)


def _fill(estimator, X):
    """Rows without gaps, by the last step of a pipeline."""
    if hasattr(estimator, "denoise"):
        return estimator.denoise(X, noise_scale=None)
    _check_has(estimator, "transform")
    return estimator.transform(X)


def _mean_square(a, b):
    residual = np.subtract(a, b, dtype=np.float64).ravel()
    return float(residual @ residual / residual.size)
