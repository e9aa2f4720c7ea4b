"""Models along a path of noise scales, each started at the one before."""

import math
import warnings
from collections import defaultdict
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import NamedTuple

import numpy as np
import torch
from joblib import Parallel, delayed, effective_n_jobs
from scipy.stats import linregress
from sklearn.base import clone
from sklearn.model_selection import check_cv
from sklearn.utils import _safe_indexing, check_random_state, indexable
from sklearn.utils._param_validation import Interval, validate_params

from ._bound import NegativeBound
from ._inference import in_float32
from ._pca_init import move_along_pca, noise_variance
from ._progress import MovesBar, progress
from ._sigma_vae import SigmaVAE
from ._stack import NotStackableError
from ._start import draw_seeds, internal_scale, prepare
from ._training import Plan, train_prepared, train_stack
from ._validation import as_samples, check_splits
from .noise import resolve_power

# Models with less KL than this, in nats, are left out of a power law: there the path
# nears the scale that hides everything, where the KL is zero and its logarithm nothing.
LEAST_KL = 1.0


# Training rows, at most, that rates and distortions are means over.
ROWS_TO_SHOW = 500


class PowerLaw(NamedTuple):
    """A fit of KL = prefactor * sigma ** -exponent, in nats.

    It is what :meth:`SigmaPath.power_law` returns, a tuple with names. The abstract of
    the σ-VAE's paper says that the KL of learned models follows such a law [1]_. On
    your data ``r2``, and a look at the curve, tell whether it does.

    Parameters
    ----------
    exponent : float
        The exponent ν.
    prefactor : float
        KL in nats per row at sigma = 1, in the units of the data.
    exponent_error : float
        Standard error of the exponent.
    log_prefactor_error : float
        Standard error of the natural logarithm of the prefactor.
    r2 : float
        Fraction of the variance of log KL that the law explains.
    sigmas : ndarray of shape (n_used,)
        The scales that were used, in the units of the data, in decreasing order.

    See Also
    --------
    SigmaPath : What it is a fit to.
    SigmaPathDisplay : Draws it.

    References
    ----------
    .. [1] S. Saremi, "Learning and Inference in Imaginary Noise Models",
       arXiv:2005.09047, 2020.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_sigmavae import SigmaVAE, sigma_path
    >>> X, _ = load_iris(return_X_y=True)
    >>> vae = SigmaVAE(2, hidden_layer_sizes=(16,), random_state=0)
    >>> path = sigma_path(X, n_sigmas=5, eps=0.05, estimator=vae, max_iter=1)
    >>> law = path.power_law()
    >>> kl = law.prefactor * law.sigmas**-law.exponent  # nats at each scale
    >>> kl.shape
    (3,)
    """

    exponent: float
    prefactor: float
    exponent_error: float
    log_prefactor_error: float
    r2: float
    sigmas: np.ndarray


@dataclass
class SigmaPath:
    """Models along a path of noise scales; what :func:`sigma_path` returns.

    It has the rate and the distortion [1]_ of each model, and what they are in the
    linear model, whose optimum is known [2]_. The parameters are kept as attributes.

    Parameters
    ----------
    sigmas : ndarray of shape (n_sigmas,)
        Scales of the noise, in the units of the data, in decreasing order.
    estimators : list of SigmaVAE
        The model at each, fitted to all of the data.
    kl : ndarray of shape (n_sigmas,)
        KL divergence of the posterior from the prior, in nats per row: the rate. Like
        the next two it is a mean over the held-out rows ``X_val``, or without them over
        at most 500 of the training rows, evenly chosen.
    distortion : ndarray of shape (n_sigmas,)
        Error of the reconstruction from a draw of the posterior: for Gaussian noise the
        sum of squares over features, in the squared units of the data; for other noise
        that of powers with its exponent.
    score : ndarray of shape (n_sigmas,)
        Bound on the log-likelihood, in nats per row.
    test_scores : ndarray of shape (n_sigmas, n_folds) or None
        With ``cv``, scores of the models of the folds on rows that these have not seen,
        in nats per row.
    eigenvalues : ndarray of shape (n_axes,)
        Of the covariance of the data, in its squared units, in decreasing order: what
        the linear model's path is made of. As many as there are components, unless
        there are fewer features or rows.
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

    def power_law(self):
        """Fit KL = prefactor * sigma ** -exponent, linearly in the logarithms.

        All scales count at which the KL is at least one nat: beyond, the path nears the
        scale that hides the data, where no power law can hold.

        Returns
        -------
        law : PowerLaw
            Exponent, prefactor, their standard errors, and R².

        Raises
        ------
        ValueError
            If there are fewer than three such scales.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from sklearn_sigmavae import SigmaVAE, sigma_path
        >>> X, _ = load_iris(return_X_y=True)
        >>> vae = SigmaVAE(2, hidden_layer_sizes=(16,), random_state=0)
        >>> path = sigma_path(X, n_sigmas=5, eps=0.05, estimator=vae, max_iter=1)
        >>> law = path.power_law()
        >>> bool(0 < law.exponent < 2 and law.r2 > 0.9)
        True
        """
        used = self.kl >= LEAST_KL
        if used.sum() < 3:
            raise ValueError(
                "A power law needs at least three scales with a KL of at least "
                f"{LEAST_KL:g} nats. This path has {used.sum()}: take more, or "
                "smaller, sigmas."
            )
        line = linregress(np.log(self.sigmas[used]), np.log(self.kl[used]))
        return PowerLaw(
            exponent=float(-line.slope),
            prefactor=float(np.exp(line.intercept)),
            exponent_error=float(line.stderr),
            log_prefactor_error=float(line.intercept_stderr),
            r2=float(line.rvalue**2),
            sigmas=self.sigmas[used],
        )


@validate_params(
    {
        "X": "no_validation",
        "sigmas": ["array-like", None],
        "n_sigmas": [Interval(Integral, 2, None, closed="left")],
        "eps": [Interval(Real, 0, 1, closed="neither")],
        "estimator": [SigmaVAE, None],
        "cv": ["cv_object"],
        "X_val": "no_validation",
        "max_iter": [Interval(Integral, 0, None, closed="left")],
        "n_jobs": [Integral, None],
    },
    prefer_skip_nested_validation=True,
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
    max_iter=5,
    n_jobs=None,
):
    """Fit models along a path of noise scales, from large to small.

    As :func:`~sklearn.linear_model.lasso_path` does for its penalty [1]_: neighbouring
    scales have neighbouring optima, so each model starts at the one before and needs
    few epochs. It is moved to its new scale by what the linear model, whose optimum is
    known [2]_, would move, and so are components that come into use there. The path
    begins where everything is hidden, at the largest standard deviation of the data
    along any direction.

    Parameters
    ----------
    X : array-like of shape (n_samples, n_features), or images
        Training data.
    sigmas : array-like of shape (n_sigmas,), default=None
        Scales of the noise, in the units of `X`, in any order. By default `n_sigmas` of
        them, evenly on a logarithmic axis, from the largest that sees anything down to
        `eps` times that.
    n_sigmas : int, default=16
        Number of scales.
    eps : float, default=1e-2
        Smallest scale, as a fraction of the largest.
    estimator : SigmaVAE, default=None
        For all other parameters; by default ``SigmaVAE()``. Its ``sigma``, ``max_iter``
        and ``callbacks`` are not used, and its learning rate is constant. A bar shows
        the progress if it is ``verbose``.
    cv : int, cross-validation generator or iterable, default=None
        If given, how to split `X` into folds, for each of which there is a path of its
        own, scored on the rest; they train side by side, for which folds leave out a
        row where others have one less.
    X_val : array-like, of samples of the same shape, default=None
        Held-out rows, to choose the best epoch of the models that are fitted to all of
        `X`, and to score them.
    max_iter : int, default=5
        Number of epochs at each scale.
    n_jobs : int, default=None
        Number of processes. They share out the folds, of which each trains its part as
        one stack. On a cluster: ``joblib.parallel_config``.

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
    whole = estimator._check_training_data(X, X_val)
    units = whole.units(np.ones(whole.layout.n_features))
    axes = whole.axes(units, estimator.n_components, seed=0)
    # Tau, in units of the data, at sigma = 1.
    tau = noise_variance(noise, 1.0, estimator.beta)
    with np.errstate(over="ignore", under="ignore"):
        variance = units.scale[0] ** 2
    if not 0 < variance < np.inf:
        raise ValueError(
            f"The variance of X, whose scale is {units.scale[0]:.2g}, leaves the range "
            "of float64. Rescale X."
        )
    eigenvalues = axes.eigenvalues * variance
    sigmas = _check_sigmas(sigmas, np.sqrt(eigenvalues[0] / tau), n_sigmas, eps)
    splits = [] if cv is None else check_splits(check_cv(cv).split(X))
    shown = as_samples(X_val)
    if X_val is None:
        step = math.ceil(len(whole.X) / ROWS_TO_SHOW)
        shown = _safe_indexing(X, np.arange(0, len(whole.X), step))
    n_processes = effective_n_jobs(n_jobs)
    groups = [([whole], [shown], [None]), *_folds(estimator, X, splits, n_processes)]
    n_epochs = max_iter * len(sigmas)
    parallel = Parallel(n_jobs=n_jobs)
    in_process = n_processes == 1
    with progress(n_epochs * (1 + len(splits)), estimator.verbose, "sigma_path") as bar:
        (models, of_whole), *of_folds = parallel(
            delayed(_follow)(estimator, data, rows, sigmas, bar if in_process else None)
            for data, rows, _ in groups
        )
        if bar is not None:
            # Also those that came to pass elsewhere, or did not need to.
            bar.update(bar.total - bar.n)
    kl, score = of_whole[:, 0].T
    test_scores = np.empty((len(sigmas), len(splits))) if splits else None
    for (_, found), (*_, folds) in zip(of_folds, groups[1:], strict=True):
        test_scores[:, list(folds)] = found[:, :, 1]
    # The bound, solved for the distortion.
    constants = [noise.log_normalizer(sigma) for sigma in sigmas]
    energy = -score - kl - whole.layout.n_features * np.array(constants)
    return SigmaPath(
        sigmas=sigmas,
        estimators=models,
        kl=kl,
        distortion=energy * noise.exponent * sigmas**noise.exponent,
        score=score,
        test_scores=test_scores,
        eigenvalues=eigenvalues,
        total_variance=float(eigenvalues.sum() + axes.residual * variance),
        noise_variance=tau * sigmas**2,
    )


def _folds(estimator, X, splits, n_processes):
    """Training data, test rows and numbers of folds that train as one stack.

    They are of equal size; to make them so for the usual splitters a row is left out
    where others have one less. Each process gets its share.
    """
    sizes = [len(train) for train, _ in splits]
    if splits and max(sizes) == min(sizes) + 1:
        splits = [(train[: min(sizes)], test) for train, test in splits]
    groups = defaultdict(list)
    for fold, (train, test) in enumerate(splits):
        data = estimator._check_training_data(_safe_indexing(X, train))
        groups[len(train)].append((data, _safe_indexing(X, test), fold))
    return [
        list(zip(*group[start::n_processes], strict=True))
        for group in groups.values()
        for start in range(min(n_processes, len(group)))
    ]


def _check_sigmas(sigmas, largest, n_sigmas, eps):
    if sigmas is None:
        if not 0 < largest < np.inf:
            raise ValueError(
                "X is constant, so there is no scale to start a path at. Pass sigmas."
            )
        return np.geomspace(largest, eps * largest, n_sigmas)
    try:
        sigmas = np.asarray(sigmas).astype(np.float64, casting="same_kind")
    except (TypeError, ValueError) as error:
        raise ValueError(
            "The 'sigmas' parameter of sigma_path must be an array of numbers. Got "
            f"{sigmas!r} instead."
        ) from error
    if sigmas.ndim != 1 or not sigmas.size:
        raise ValueError(
            "The 'sigmas' parameter of sigma_path must be a one-dimensional array of "
            f"at least one scale. Got an array of shape {sigmas.shape} instead."
        )
    if not (np.isfinite(sigmas).all() and (sigmas > 0).all()):
        raise ValueError(
            "The 'sigmas' parameter of sigma_path must be positive and finite. Got "
            f"{sigmas} instead."
        )
    return np.sort(sigmas)[::-1]


# Also under a caller's torch.no_grad() or torch.inference_mode().
@torch.inference_mode(False)
@torch.enable_grad()
def _follow(estimator, data, shown, sigmas, bar):
    """Follow the path with models of data of equal size, trained as one stack.

    Returns
    -------
    models : list of SigmaVAE
        At each scale that of the first of the data.
    found : ndarray of shape (n_sigmas, n_data, 2)
        KL divergence and score of each model, on the rows that are shown to it.
    """
    seed = check_random_state(estimator.random_state).randint(2**31 - 1)
    kept, found, starts = [], [], None
    for sigma in sigmas:
        models = [clone(estimator).set_params(sigma=sigma) for _ in data]
        if starts is None:
            starts = _first(models, data, seed)
        else:
            starts = [
                _moved(start, model)
                for start, model in zip(starts, models, strict=True)
            ]
        for model, net in zip(models, _train(starts, bar), strict=True):
            if isinstance(net, Exception):
                raise ValueError(f"The path ends at sigma={sigma:g}: {net}") from net
            model._adopt(net, like=estimator)
        kept.append(models[0])
        found.append(
            [_rate_and_score(*pair) for pair in zip(models, shown, strict=True)]
        )
    return kept, np.array(found)


def _rate_and_score(model, X):
    with in_float32(model.module_):
        kl = model.kl_divergence(X).sum(axis=1, dtype=np.float64).mean()
        return kl, model.score(X)


def _first(models, data, seed):
    with warnings.catch_warnings():
        # That the first scale hides all of the data is what it is for.
        warnings.filterwarnings("ignore", "No component is in use")
        return [
            prepare(model, rows, draw_seeds(check_random_state(seed)))
            for model, rows in zip(models, data, strict=True)
        ]


def _train(starts, bar):
    """Nets, or why their training failed."""
    params = starts[0].params
    # Each model goes on with the training of the one before: no new cycle.
    plan = Plan(int(params.max_iter), "constant", params.early_stopping)

    def callbacks(n_members):
        return [] if bar is None else [MovesBar(bar, n_members)]

    # One model alone is as fast, or faster, with the products of one.
    if len(starts) > 1:
        with suppress(NotStackableError):
            return train_stack(starts, plan, callbacks(len(starts)))
    nets = []
    for start in starts:
        try:
            nets.append(train_prepared(start, plan, callbacks(1)))
        except ValueError as error:
            nets.append(error)
    return nets


def _moved(start, model):
    """The start of a model: a trained one, moved along with the linear model's path."""
    noise, units = start.criterion.noise, start.vae.units
    # The units stay the same object: by it the data knows its rows and axes.
    vae = deepcopy(start.vae, {id(units): units})
    tails, vae.tails = vae.tails, None
    scale = internal_scale(model.sigma, units)
    if model.init == "pca":
        axes = start.data.axes(units, model.n_components, start.seed)
        move_along_pca(
            vae,
            axes,
            noise_variance(noise, start.criterion.scale, model.beta),
            noise_variance(noise, scale, model.beta),
        )
    criterion = NegativeBound(noise, model.beta, scale, units.log_volume)
    return replace(start, params=model, vae=vae, criterion=criterion, tails=tails)
