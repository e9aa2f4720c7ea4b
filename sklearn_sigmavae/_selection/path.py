"""Models along a path of noise scales, each started at the one before."""

import math
import warnings
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np
import torch
from joblib import effective_n_jobs
from sklearn.base import clone
from sklearn.model_selection import check_cv
from sklearn.utils import _safe_indexing, check_array, check_random_state, indexable
from sklearn.utils._param_validation import Interval

from .._model.elbo import linear_tau
from .._model.settings import limited_threads
from .._model.units import Units
from .._sigma_vae import SigmaVAE
from .._training.callbacks import ProgressCallback
from .._training.fit import TrainingSchedule, train
from .._training.initial import copy_weights, draw_seeds, initial_model
from .._training.pca import move_along_pca, principal_axes, rows_for_start
from .._training.stack import NotStackableError, train_stack
from .._validation import (
    COUNT_OR_ZERO,
    FRACTION,
    POSITIVE,
    as_samples,
    check_params,
    check_splits,
)
from ..noise import resolve_power
from .jobs import run_jobs
from .power_law import PowerLaw

_SHARE = Interval(Real, 0, 1, closed="right")


@dataclass
class SigmaPath:
    """Models along a path of noise scales; what :func:`sigma_path` returns.

    It has the rate and the distortion [1]_ of each model, and those of the linear model
    [2]_. The parameters are kept as attributes.

    Parameters
    ----------
    sigmas : ndarray of shape (n_sigmas,)
        Scales of the noise, in the units of the data, in decreasing order.
    estimators : list of SigmaVAE
        The model at each, fitted to all of the data.
    kl : ndarray of shape (n_sigmas,)
        KL divergence of the posterior from the prior, in nats per row: the rate. Like
        the next two a mean over ``X_val``, or over at most 500 of the training rows.
    distortion : ndarray of shape (n_sigmas,)
        Error of the reconstruction from a draw of the posterior: for Gaussian noise the
        sum of squares over features, in the squared units of the data; for other noise
        that of powers with its exponent.
    score : ndarray of shape (n_sigmas,)
        Bound on the log-likelihood, in nats per row, at the encoder's posteriors
        (``refine=False`` in :meth:`SigmaVAE.score_samples`), like the two before.
    test_scores : ndarray of shape (n_sigmas, n_folds) or None
        With ``cv``, scores of the folds' models on their test rows, in nats per row.
    eigenvalues : ndarray of shape (n_axes,)
        The largest of the covariance of the data, in its squared units, in decreasing
        order: one for each component, unless there are fewer features or rows.
    total_variance : float
        Sum of the variances of the features, in the squared units of the data.
    noise_variance : ndarray of shape (n_sigmas,)
        What the linear model compares the eigenvalues with, in the same units: for
        Gaussian noise and ``beta=1`` the squares of the scales.

    See Also
    --------
    sigma_path : Fits the models.
    SigmaPathDisplay : Draws the path.

    References
    ----------
    .. [1] A. A. Alemi, B. Poole, I. Fischer, J. V. Dillon, R. A. Saurous, K. Murphy,
       "Fixing a Broken ELBO", arXiv:1711.00464, 2018.
    .. [2] J. Lucas, G. Tucker, R. Grosse, M. Norouzi, "Don't Blame the ELBO! A Linear
       VAE Perspective on Posterior Collapse", arXiv:1911.02469, 2019.

    Examples
    --------
    A smaller scale is a larger rate and a smaller distortion:

    >>> import numpy as np
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_sigmavae import SigmaVAE, sigma_path
    >>> X, _ = load_iris(return_X_y=True)
    >>> vae = SigmaVAE(2, hidden_layer_sizes=(16,), random_state=0)
    >>> path = sigma_path(X, n_sigmas=5, eps=0.05, estimator=vae, max_iter=1)
    >>> bool((np.diff(path.kl) > 0).all() and (np.diff(path.distortion) < 0).all())
    True
    >>> path.best_estimator.transform(X).shape  # at path.best_sigma
    (150, 2)
    """

    sigmas: np.ndarray
    estimators: list
    kl: np.ndarray
    distortion: np.ndarray
    score: np.ndarray
    test_scores: np.ndarray | None
    eigenvalues: np.ndarray
    total_variance: float
    noise_variance: np.ndarray

    @property
    def linear_kl(self):
        """ndarray of shape (n_sigmas,) : KL of the linear model, in nats per row."""
        ratio = self.eigenvalues / self.noise_variance[:, None]
        return 0.5 * np.log(np.maximum(ratio, 1.0)).sum(axis=1)

    @property
    def best_index(self):
        """int : Where the mean test score is best or, without ``cv``, the score."""
        scores = self.score if self.test_scores is None else self.test_scores.mean(1)
        return int(np.argmax(scores))

    @property
    def best_sigma(self):
        """float : The scale with the best score, in the units of the data."""
        return float(self.sigmas[self.best_index])

    @property
    def best_estimator(self):
        """SigmaVAE : The model at the best scale, fitted to all of the data."""
        return self.estimators[self.best_index]

    @property
    def n_active_components(self):
        """ndarray of shape (n_sigmas,) : Components in use at each scale."""
        return np.array([model.n_active_components_ for model in self.estimators])

    @check_params({"min_kl": [POSITIVE], "max_active": [_SHARE]})
    def power_law(self, *, min_kl=5.0, max_active=0.8):
        """Fit KL = prefactor * sigma ** -exponent, linearly in the logarithms.

        No model can follow a power law everywhere. Near the scale that hides all of the
        data the KL vanishes; where all components are in use it grows by no more than
        the logarithm of the scale for each. The scales between are fitted.

        Parameters
        ----------
        min_kl : float, default=5.0
            Minimum KL of the scales that are fitted, in nats per row.
        max_active : float, default=0.8
            Of the components that there can be, the maximum fraction in use. If scales
            are left out for it a warning says so: more components would see further.

        Returns
        -------
        law : PowerLaw
            Exponent, prefactor, their standard errors, R², and the curvature.

        Raises
        ------
        ValueError, TypeError
            If a parameter is not valid, or fewer than three scales are left.

        Examples
        --------
        >>> from sklearn.datasets import load_digits
        >>> from sklearn_sigmavae import SigmaVAE, sigma_path
        >>> X = load_digits().data[:500]
        >>> vae = SigmaVAE(60, hidden_layer_sizes=(), random_state=0)
        >>> path = sigma_path(X, n_sigmas=8, eps=0.1, estimator=vae, max_iter=0)
        >>> law = path.power_law()
        >>> bool(1 < law.exponent < 2 and law.r2 > 0.9)
        True
        """
        k, used = len(self.eigenvalues), self.kl >= min_kl
        runs_out = self.n_active_components > max_active * k
        left_out = self.sigmas[used & runs_out]
        used &= ~runs_out
        if used.sum() < 3:
            raise ValueError(
                f"A power law needs at least three scales with a KL of {min_kl:g} nats "
                f"or more and at most {max_active:.0%} of {k} components in use. This "
                f"path has {used.sum()}. Pass more sigmas in that range, or change "
                "n_components, min_kl or max_active."
            )
        if len(left_out):
            warnings.warn(
                f"Scales from {left_out.max():.3g} down are not fitted: more than "
                f"{max_active:.0%} of {k} components are in use there. Raise "
                "n_components to follow the KL further.",
                stacklevel=3,
            )
        return PowerLaw.of_curve(self.sigmas[used], self.kl[used])


@check_params(
    {
        "sigmas": ["array-like", None],
        "n_sigmas": [Interval(Integral, 2, None, closed="left")],
        "eps": [FRACTION],
        "estimator": [SigmaVAE, None],
        "cv": ["cv_object"],
        "max_iter": [COUNT_OR_ZERO],
        "n_jobs": [Integral, None],
    }
)
def sigma_path(
    X,
    sigmas=None,
    *,
    n_sigmas=16,
    eps=1e-2,
    estimator=None,
    cv=None,
    X_val=None,
    max_iter=10,
    n_jobs=None,
):
    """Fit models along a path of noise scales, from large to small.

    As in :func:`~sklearn.linear_model.lasso_path` [1]_ each model starts at the one
    before, moved to its new scale as the linear model [2]_ would be, and needs few
    epochs. A model fitted from scratch for longer has fewer components in use, and a
    higher score. By default the path begins where everything is hidden, at the largest
    standard deviation of the data along any direction.

    Parameters
    ----------
    X : array-like of shape (n_samples, n_features), or images
        Training data.
    sigmas : array-like of shape (n_sigmas,), default=None
        Scales of the noise, in the units of `X`, in any order. By default `n_sigmas`,
        evenly on a logarithmic axis, from the largest that sees anything to `eps` times
        that.
    n_sigmas : int, default=16
        Number of scales.
    eps : float, default=1e-2
        Smallest scale, as a fraction of the largest.
    estimator : SigmaVAE, default=None
        For all other parameters; by default ``SigmaVAE()``. Its ``sigma``, ``max_iter``
        and ``callbacks`` are not used, and its learning rate is constant. A bar shows
        the progress if it is ``verbose``.
    cv : int, cross-validation generator or iterable, default=None
        How to split `X` into folds, each with a path of its own that is scored on the
        rest. They train side by side; folds leave out a row where others have one less.
    X_val : array-like, of samples of the same shape, default=None
        Held-out rows, to choose the best epoch of the models that are fitted to all of
        `X`, and to score them.
    max_iter : int, default=10
        Number of epochs at each scale. More of them lower the KL divergence and raise
        the score.
    n_jobs : int, default=None
        Number of processes, which share the folds. On a cluster:
        ``joblib.parallel_config``.

    Returns
    -------
    path : SigmaPath
        Models, scores, rates and distortions.

    Raises
    ------
    ValueError, TypeError
        If a parameter or the data is not valid, the noise model has no exponent, or
        training diverges at one of the scales.

    See Also
    --------
    BatchedGridSearchCV : Grid search over ``sigma`` and all else.
    SigmaPathDisplay : Draws a path.

    References
    ----------
    .. [1] J. Friedman, T. Hastie, R. Tibshirani, "Regularization Paths for Generalized
       Linear Models via Coordinate Descent", Journal of Statistical Software 33(1),
       2010.
    .. [2] J. Lucas, G. Tucker, R. Grosse, M. Norouzi, "Don't Blame the ELBO! A Linear
       VAE Perspective on Posterior Collapse", arXiv:1911.02469, 2019.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.model_selection import KFold
    >>> from sklearn_sigmavae import SigmaVAE, sigma_path
    >>> X, _ = load_iris(return_X_y=True)
    >>> vae = SigmaVAE(2, hidden_layer_sizes=(16,), random_state=0)
    >>> folds = KFold(2, shuffle=True, random_state=0)
    >>> path = sigma_path(
    ...     X, n_sigmas=5, eps=0.05, estimator=vae, cv=folds, max_iter=1
    ... )
    >>> 0.1 < path.best_sigma < 0.5
    True
    >>> path.best_estimator.transform(X).shape
    (150, 2)
    """
    estimator = clone(SigmaVAE() if estimator is None else estimator)
    estimator.set_params(sigma=1.0, max_iter=max_iter, callbacks=None)
    estimator._validate_params()
    noise = resolve_power(estimator.noise, "there is no path of sigma")
    (X,) = indexable(as_samples(X))
    whole = estimator._check_samples(X, X_val)
    if whole.has_gaps:
        raise ValueError(
            "sigma_path takes no rows with gaps, and X or X_val contains NaN. Search "
            "over sigma with BatchedGridSearchCV, which does, or fill them with "
            "SigmaVAEImputer."
        )
    units = Units.of_data(whole.X, np.ones(whole.layout.n_features))
    k = estimator.n_components
    rows = rows_for_start(whole.X, units, k)
    axes, _ = principal_axes(rows, k, lambda axes: np.inf)
    with np.errstate(over="ignore", under="ignore"):
        variance = units.scale[0] ** 2
    if not 0 < variance < np.inf:
        raise ValueError(
            f"The variance of X, whose scale is {units.scale[0]:.2g}, leaves the range "
            "of float64. Rescale X."
        )
    eigenvalues = axes.eigenvalues[:k] * variance
    # Tau, in units of the data, at sigma = 1.
    tau = linear_tau(noise, 1.0, estimator.beta)
    if sigmas is None:
        largest = np.sqrt(eigenvalues[0] / tau)
        if not 0 < largest < np.inf:
            raise ValueError(
                "X is constant, so there is no scale to start a path at. Pass sigmas."
            )
        sigmas = np.geomspace(largest, eps * largest, n_sigmas)
    sigmas = check_array(sigmas, ensure_2d=False, input_name="sigmas").astype(float)
    if sigmas.ndim != 1 or not (sigmas > 0).all():
        raise ValueError(
            "The 'sigmas' parameter of sigma_path must be a one-dimensional array of "
            f"positive numbers. Got {sigmas} instead."
        )
    sigmas = np.sort(sigmas)[::-1]
    shown = as_samples(X_val)
    if X_val is None:
        step = math.ceil(len(whole.X) / 500)
        shown = _safe_indexing(X, np.arange(0, len(whole.X), step))
    splits = [] if cv is None else check_splits(check_cv(cv).split(X))
    groups = [([whole], [shown], [None]), *_folds(estimator, X, splits, n_jobs)]
    (models, of_whole), *of_folds = run_jobs(
        _follow,
        [(estimator, data, rows, sigmas) for data, rows, _ in groups],
        [max_iter * len(sigmas) * len(data) for data, *_ in groups],
        n_jobs=n_jobs,
        verbose=estimator.verbose,
        description="sigma_path",
    )
    kl, score = of_whole[:, 0].T
    test_scores = np.empty((len(sigmas), len(splits))) if splits else None
    for (_, found), (*_, folds) in zip(of_folds, groups[1:], strict=True):
        test_scores[:, folds] = found[:, :, 1]
    # The bound, solved for the distortion.
    constants = np.array([noise.log_normalizer(sigma) for sigma in sigmas])
    energy = -score - kl - whole.layout.n_features * constants
    return SigmaPath(
        sigmas=sigmas,
        estimators=models,
        kl=kl,
        distortion=energy * noise.exponent * sigmas**noise.exponent,
        score=score,
        test_scores=test_scores,
        eigenvalues=eigenvalues,
        total_variance=axes.total() * float(variance),
        noise_variance=tau * sigmas**2,
    )


def _folds(estimator, X, splits, n_jobs):
    """Training data, test rows and numbers of folds of equal size, for each stack."""
    sizes = [len(train) for train, _ in splits]
    # The usual splitters make folds whose sizes differ by one row.
    if splits and max(sizes) == min(sizes) + 1:
        splits = [(train[: min(sizes)], test) for train, test in splits]
    groups = defaultdict(list)
    for fold, (training, test) in enumerate(splits):
        data = estimator._check_samples(_safe_indexing(X, training))
        groups[len(training)].append((data, _safe_indexing(X, test), fold))
    step = effective_n_jobs(n_jobs)
    shares = [group[i::step] for group in groups.values() for i in range(step)]
    return [[*map(list, zip(*share, strict=True))] for share in shares if share]


# Also under a caller's torch.no_grad() or torch.inference_mode(), and in forks.
@limited_threads(0, "cpu")
@torch.inference_mode(False)
@torch.enable_grad()
def _follow(estimator, data, shown, sigmas, bar):
    """Follow the path with models of data of equal size, trained as one stack.

    Returns the models of the first data, and the KL divergence and score of all of
    them, of shape (n_sigmas, n_data, 2).
    """
    seed = check_random_state(estimator.random_state).randint(2**31 - 1)
    # Each model goes on with the training of the one before: no new cycle.
    epochs, early_stopping = int(estimator.max_iter), estimator.early_stopping
    schedule = TrainingSchedule(epochs, False, early_stopping, reports=False)
    # The model with the least noise sees the most axes; its rows are those of all.
    last = clone(estimator).set_params(sigma=sigmas[-1])
    widest = [_initial_model(last, samples, seed, schedule) for samples in data]
    kept, found, starts = [], [], [None] * len(data)
    for sigma in sigmas:
        models = [clone(estimator).set_params(sigma=sigma) for _ in data]
        starts = [
            _start(model, samples, previous, seed, schedule, like)
            for model, samples, previous, like in zip(
                models, data, starts, widest, strict=True
            )
        ]
        found.append([])
        fitted = _train(starts, schedule, bar)
        for model, result, rows in zip(models, fitted, shown, strict=True):
            if isinstance(result, Exception):
                message = f"The path ends at sigma={sigma:g}: {result}"
                raise ValueError(message) from result
            model._adopt(result, like=estimator)
            # In float32, which is twice as fast.
            vae, supports_float64 = result.module, result.module.supports_float64
            vae.supports_float64 = False
            kl = model.kl_divergence(rows).astype(np.float64).reshape(len(rows), -1)
            kl = kl.sum(axis=1).mean()
            score = model.score_samples(rows, refine=False).mean()
            found[-1].append((kl, score))
            vae.supports_float64 = supports_float64
        kept.append(models[0])
    return kept, np.array(found)


def _initial_model(model, samples, seed, schedule, like=None):
    seeds = draw_seeds(check_random_state(seed))
    with warnings.catch_warnings():
        # The first scale is meant to hide all of the data.
        warnings.filterwarnings("ignore", "No component is in use")
        return initial_model(
            model, samples, seeds, schedule, like, on_path=like is not None
        )


def _start(model, samples, previous, seed, schedule, like):
    """The model before, trained, at the scale of this one, to which PCA moves it."""
    start = _initial_model(model, samples, seed, schedule, like)
    if previous is None:
        return start
    copy_weights(previous.vae, start.vae)
    if start.axes is not None:
        criteria = previous.criterion, start.criterion
        taus = (linear_tau(each.noise, each.scale, each.beta) for each in criteria)
        axes = start.axes.divided_by(start.size)
        move_along_pca(start.vae, axes, *taus, start.fitted_codes)
    return start


def _train(starts, schedule, bar):
    """Models, or why their training failed."""

    def callbacks(n_models):
        return [] if bar is None else [ProgressCallback(bar, n_models)]

    # A single model is no faster as a stack.
    if len(starts) > 1:
        with suppress(NotStackableError):
            return train_stack(starts, schedule, callbacks(len(starts)))
    models = []
    for start in starts:
        try:
            models.append(train(start, schedule, callbacks(1)))
        except ValueError as error:
            models.append(error)
    return models
