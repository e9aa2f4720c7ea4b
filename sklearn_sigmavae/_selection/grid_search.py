"""Grid search that trains the candidates of a grid, times folds, side by side."""

import math
import time
import warnings
from collections import defaultdict
from functools import cache, wraps
from itertools import chain
from numbers import Number
from typing import NamedTuple

import torch
from joblib import effective_n_jobs
from sklearn.base import _fit_context, clone
from sklearn.model_selection import GridSearchCV, ParameterGrid, check_cv

# GridSearchCV.fit trains the candidates inside, each by itself, and cannot be given
# fits that are trained together. So these parts of it are called one by one.
from sklearn.model_selection._search import _search_estimator_has
from sklearn.model_selection._validation import (
    _fit_and_score,
    _insert_error_scores,
    _warn_or_raise_about_fit_failures,
)
from sklearn.utils import _safe_indexing, indexable
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import _check_method_params, check_is_fitted

from .._model.settings import OPERATIONS_PER_THREAD, resolve_device
from .._sigma_vae import SigmaVAE
from .._training.callbacks import ProgressCallback
from .._training.fit import TrainingSchedule, count_epochs
from .._training.initial import check_auto
from .._training.outcome import gather_remarks
from .._training.stack import fit_stack, limit_of_stack
from .._validation import as_samples, check_sigma, check_splits
from .jobs import run_jobs


def _delegate(name):
    """Make a method that calls the one of the best model, and is documented as it."""
    method = getattr(SigmaVAE, name)

    @available_if(_search_estimator_has(name))
    @wraps(method)
    def call(self, *args, **kwargs):
        check_is_fitted(self, "best_estimator_")
        return getattr(self.best_estimator_, name)(*args, **kwargs)

    return call


class BatchedGridSearchCV(GridSearchCV):
    """Grid search over a :class:`SigmaVAE` at the price of a few fits.

    A :class:`~sklearn.model_selection.GridSearchCV` whose candidates that differ
    only in ``sigma``, ``beta`` or ``random_state``, times folds, are trained together,
    as one stack of models: each with its own weights, batches, held-out rows and best
    epoch, and to the scores that it would reach alone.

    Other parameters, and training sets of different size, have stacks of their own. A
    stack takes at most 64 MB on the CPU, and half of the free memory on a CUDA device;
    larger ones are cut into chunks. Candidates with ``callbacks`` or a custom
    optimizer, and networks with other layers than fully connected ones, are trained one
    by one, which a warning reports.

    Parameters
    ----------
    estimator : SigmaVAE
        What to search over. For a pipeline, use
        :class:`~sklearn.model_selection.GridSearchCV`.
    param_grid : dict or list of dict
        Parameters and the values to try.
    scoring : str, callable, list, tuple or dict, default=None
        How to score; by default :meth:`SigmaVAE.score`, the bound in nats per row. See
        :mod:`sklearn_sigmavae.metrics` for others.
    n_jobs : int, default=None
        Number of chunks that run at a time, each in a process of its own. None is one
        process, whose chunks run in as many threads as torch may use, if there is
        enough work for them and `scoring` is None. On a cluster:
        ``joblib.parallel_config(backend="dask")``.
    refit : bool, str or callable, default=True
        Whether, and by which score, to fit the best candidate to all of the data.
    cv : int, cross-validation generator or iterable, default=None
        How to split; 5 folds by default.
    verbose : int, default=0
        With 1 or more, one progress bar for the whole search.
    pre_dispatch : int or str, default='2*n_jobs'
        Number of chunks that are dispatched at a time.
    error_score : 'raise' or numeric, default=np.nan
        Score of a candidate whose training fails, by diverging say.
    return_train_score : bool, default=False
        Whether to score on the training rows too.

    Attributes
    ----------
    cv_results_ : dict of ndarray of shape (n_candidates,)
        As of :class:`~sklearn.model_selection.GridSearchCV`; the time of a fit is that
        of its chunk, divided by the number of fits in it.
    best_estimator_ : SigmaVAE
        The best candidate, fitted to all of the data.
    best_score_ : float
        Its mean score on the test folds: by default the bound in nats per row.
    best_params_, best_index_ : dict, int
        Its parameters, and its index in ``cv_results_``.
    scorer_, multimetric_ : callable or dict, bool
        The scorer or scorers, and whether there are several scores.
    n_splits_, refit_time_ : int, float
        Number of folds, and the seconds that the fit to all of the data took.
    n_features_in_, feature_names_in_ : int, ndarray of shape (n_features,)
        Number of features and, if all are strings, their names.

    See Also
    --------
    sigma_path : Models along a path of ``sigma``, each started at the one before.

    Notes
    -----
    Scores are computed in float32, also for data in float64: to about 1e-6. Parameters
    and folds are checked before any training: a candidate that is not valid raises,
    whatever ``error_score``.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_sigmavae import BatchedGridSearchCV, SigmaVAE
    >>> X, _ = load_iris(return_X_y=True)
    >>> vae = SigmaVAE(2, hidden_layer_sizes=(16,), max_iter=2, random_state=0)
    >>> search = BatchedGridSearchCV(vae, {"sigma": [0.1, 0.2, 0.4, 0.8]}).fit(X)
    >>> search.best_params_
    {'sigma': 0.2}
    >>> search.transform(X).shape
    (150, 2)
    """

    @_fit_context(prefer_skip_nested_validation=False)
    def fit(self, X, y=None, **params):
        """Train and score all candidates on all folds, and fit the best to all rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), or images
            Training data.
        y : array-like of shape (n_samples,), default=None
            For scorers and splitters that use it.
        **params : dict
            ``groups`` for the splitter; the rest, ``X_val`` say, for the estimator's
            ``fit``.

        Returns
        -------
        self : BatchedGridSearchCV
            The search, with its results in ``cv_results_``.

        Raises
        ------
        TypeError
            If the estimator is not a SigmaVAE, or the data is sparse.
        ValueError
            If the grid, a candidate, the data or a fold is not valid, or all fits
            fail.

        Warns
        -----
        ConvergenceWarning
            Once for all fits that no epoch improved, and once for those that ended
            while their held-out bound was rising.

        Examples
        --------
        Score by rows of groups that were not trained on:

        >>> import numpy as np
        >>> from sklearn.datasets import load_iris
        >>> from sklearn.model_selection import GroupKFold
        >>> from sklearn_sigmavae import BatchedGridSearchCV, SigmaVAE
        >>> X, _ = load_iris(return_X_y=True)
        >>> vae = SigmaVAE(2, hidden_layer_sizes=(16,), max_iter=2, random_state=0)
        >>> groups = np.arange(150) // 5  # say, five flowers of each plant
        >>> cv = GroupKFold(2)
        >>> search = BatchedGridSearchCV(vae, {"sigma": [0.3, 1]}, cv=cv, refit=False)
        >>> search.fit(X, groups=groups).best_params_
        {'sigma': 0.3}
        """
        if not isinstance(self.estimator, SigmaVAE):
            raise TypeError(
                "The 'estimator' parameter of BatchedGridSearchCV must be a SigmaVAE, "
                f"got {type(self.estimator).__name__}. For any other estimator use "
                "sklearn.model_selection.GridSearchCV."
            )
        scorers, refit_metric = self._get_scorers()
        X, y = indexable(as_samples(X), y)
        params = _check_method_params(X, params=params)
        routed = self._get_routed_params_for_fit(params)
        base, candidates = clone(self.estimator), list(ParameterGrid(self.param_grid))
        if not candidates:
            raise ValueError("The 'param_grid' parameter holds no candidates.")
        folds = check_cv(self.cv, y).split(X, y, **routed.splitter.split)
        splits = check_splits(folds)
        layouts = _check_candidates(base, candidates, X)
        n_threads = self._count_threads(base, candidates)
        n_workers = n_threads or effective_n_jobs(self.n_jobs)
        chunks, reasons = _cut(base, candidates, layouts, splits, n_workers)
        # Threads would wait for Python if there is little work, and models that train
        # one by one draw from the process's random state.
        n_operations = sum(chunk.n_operations for chunk in chunks)
        is_little = n_operations < n_threads * OPERATIONS_PER_THREAD
        if n_threads and (is_little or not all(chunk.is_stack for chunk in chunks)):
            n_threads = 0
            chunks, reasons = _cut(base, candidates, layouts, splits, 1)
        if reasons:
            message = "Some candidates cannot be trained in a stack and are trained "
            message += f"one by one: {'; '.join(reasons)}."
            # Past scikit-learn's wrapper of fit.
            warnings.warn(message, stacklevel=3)
        scoring = {
            "scorer": scorers,
            "fit_params": routed.estimator.fit,
            "score_params": routed.scorer.score,
            "return_train_score": self.return_train_score,
            "error_score": self.error_score,
            "return_times": True,
            "return_n_test_samples": True,
            "parameters": None,
            "verbose": 0,
        }
        of_chunks = run_jobs(
            _evaluate,
            [(chunk, X, y, base, splits, scoring) for chunk in chunks],
            [chunk.n_epochs for chunk in chunks],
            n_jobs=self.n_jobs,
            verbose=self.verbose,
            description=type(self).__name__,
            pre_dispatch=self.pre_dispatch,
            n_threads=n_threads,
        )
        out = [result for _, result in sorted(chain.from_iterable(of_chunks))]
        remarks = [remark for result in out for remark in result.pop("remarks", ())]
        _warn_or_raise_about_fit_failures(out, self.error_score)
        if callable(self.scoring):
            _insert_error_scores(out, self.error_score)
        results = self._format_results(candidates, len(splits), out)
        is_multimetric = isinstance(out[0]["test_scores"], dict)
        # Several scorers come as one that holds them.
        found = {"scorer_": getattr(scorers, "_scorers", scorers)}
        found |= {"cv_results_": results, "multimetric_": is_multimetric}
        found["n_splits_"] = len(splits)
        if callable(self.scoring) and is_multimetric:
            self._check_refit_for_multimetric(out[0]["test_scores"])
            refit_metric = self.refit
        if self.refit or not is_multimetric:
            best = self._select_best_index(self.refit, refit_metric, results)
            found |= {"best_index_": best, "best_params_": results["params"][best]}
            if not callable(self.refit):
                found["best_score_"] = results[f"mean_test_{refit_metric}"][best]
        if self.refit:
            estimator = _candidate(base, found["best_params_"])
            start = time.time()
            estimator.fit(X, y, **routed.estimator.fit)
            found["refit_time_"] = time.time() - start
            found["best_estimator_"] = estimator
            if hasattr(estimator, "feature_names_in_"):
                found["feature_names_in_"] = estimator.feature_names_in_
        for name in [name for name in vars(self) if name.endswith("_")]:
            delattr(self, name)
        vars(self).update(found)
        # Last, so that nothing is lost where warnings are errors.
        gather_remarks(remarks, len(out))
        return self

    def _count_threads(self, base, candidates):
        """Chunks that may run at a time in threads of this process; 0 for none.

        Scorers of the user need not be able to run in several.
        """
        is_alone = self.n_jobs is None and effective_n_jobs(None) == 1
        if not is_alone or self.scoring is not None:
            return 0
        devices = {params.get("device", base.device) for params in candidates}
        if any(resolve_device(device).type != "cpu" for device in devices):
            return 0
        return torch.get_num_threads()

    # Methods of the best model that scikit-learn's searches do not delegate.

    denoise = _delegate("denoise")
    posterior = _delegate("posterior")
    sample = _delegate("sample")
    save = _delegate("save")

    @available_if(_search_estimator_has("get_feature_names_out"))
    def get_feature_names_out(self, input_features=None):
        """Name the columns that ``transform`` returns.

        Parameters
        ----------
        input_features : Ignored
            Present for API consistency.

        Returns
        -------
        names : ndarray of shape (n_components,)
            Those of the best model.

        Raises
        ------
        NotFittedError
            If the search is not fitted.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from sklearn_sigmavae import BatchedGridSearchCV, SigmaVAE
        >>> X, _ = load_iris(return_X_y=True)
        >>> vae = SigmaVAE(2, hidden_layer_sizes=(16,), max_iter=2, random_state=0)
        >>> search = BatchedGridSearchCV(vae, {"sigma": [0.3, 1]}, cv=2).fit(X)
        >>> search.get_feature_names_out().tolist()
        ['sigmavae0', 'sigmavae1']
        """
        check_is_fitted(self, "best_estimator_")
        return self.best_estimator_.get_feature_names_out(input_features)

    @available_if(_search_estimator_has("set_output"))
    def set_output(self, *, transform=None):
        """Choose the container that ``transform`` returns.

        Parameters
        ----------
        transform : {"default", "pandas", "polars"}, default=None
            As for ``SigmaVAE.set_output``; None changes nothing.

        Returns
        -------
        self : BatchedGridSearchCV
            The search, whose estimator, and so later fits, are changed too.

        Raises
        ------
        AttributeError
            If ``refit=False``, so that there is no best model.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from sklearn_sigmavae import BatchedGridSearchCV, SigmaVAE
        >>> X, _ = load_iris(return_X_y=True, as_frame=True)
        >>> vae = SigmaVAE(2, hidden_layer_sizes=(16,), max_iter=2, random_state=0)
        >>> search = BatchedGridSearchCV(vae, {"sigma": [0.3, 1]}, cv=2)
        >>> search.set_output(transform="pandas").fit(X).transform(X).columns.tolist()
        ['sigmavae0', 'sigmavae1']
        """
        self.estimator.set_output(transform=transform)
        if hasattr(self, "best_estimator_"):
            self.best_estimator_.set_output(transform=transform)
        return self


class Fit(NamedTuple):
    """A candidate and a split, by their numbers, and the candidate's parameters."""

    candidate: int
    split: int
    params: dict


class Chunk(NamedTuple):
    """Fits that run together, as a stack or one by one.

    ``n_epochs`` are those of all, ``n_operations`` those of a step of the stack.
    """

    fits: list
    is_stack: bool
    n_epochs: int
    n_operations: float


def _evaluate(chunk, X, y, base, splits, scoring, bar):
    """Train and score the fits of a chunk; return pairs of fit and result."""
    fits, first = chunk.fits, _candidate(base, chunk.fits[0].params)

    @cache
    def samples(split):
        train, _ = splits[split]
        params = _check_method_params(X, scoring["fit_params"], indices=train)
        return _check_samples(first, _safe_indexing(X, train), **params)

    start = time.time()
    models = [None] * len(fits)
    if chunk.is_stack:
        models = _train(fits, samples, base, bar)
    if getattr(bar, "is_stopped", False):
        raise KeyboardInterrupt
    seconds = (time.time() - start) / len(fits)
    results = []
    for (candidate, split, params), model in zip(fits, models, strict=True):
        estimator = _candidate(base, params)
        _replay(estimator, model, first)
        train, test = splits[split]
        result = _fit_and_score(estimator, X, y, train=train, test=test, **scoring)
        if chunk.is_stack:
            result["fit_time"] = seconds
        if result["fit_error"] is None:
            result["remarks"] = estimator._model.remarks
        results.append(((candidate, split), result))
    return results


def _replay(estimator, model, first):
    """Make the next `fit` of an estimator return, or raise, what its stack has made.

    Without a model, `fit` trains one and leaves its warnings to the search.
    """
    # An error that several fits share grows its traceback whenever it is raised.
    traceback = getattr(model, "__traceback__", None)

    def fit(X, y=None, **params):
        del estimator.fit
        if isinstance(model, Exception):
            raise model.with_traceback(traceback)
        if model is None:
            return estimator._fit(X, **params)
        estimator._adopt(model, like=first)
        # As exact as scores need to be, and twice as fast.
        estimator.module_.supports_float64 = False

    estimator.fit = fit


def _check_samples(estimator, X, *, X_val=None):
    # Takes the parameters of fit, and no others.
    return estimator._check_samples(X, X_val)


def _train(fits, samples, base, bar):
    """Models, or errors; from smaller stacks where memory is short."""
    estimators = [_candidate(base, fit.params) for fit in fits]
    callbacks = [] if bar is None else [ProgressCallback(bar, len(fits))]
    try:
        data = [samples(fit.split) for fit in fits]
        schedule = TrainingSchedule.of_fit(estimators[0], len(data[0].X))
        return fit_stack(estimators, data, schedule, callbacks)
    except Exception as error:
        if not isinstance(error, MemoryError) or len(fits) == 1:
            return [error] * len(fits)
    # Outside of the block above, so that what the error held on to is free.
    half = len(fits) // 2
    models = _train(fits[:half], samples, base, bar)
    return models + _train(fits[half:], samples, base, bar)


def _candidate(base, params):
    # Parameters are cloned too, since some are estimators themselves.
    return clone(base).set_params(**clone(params, safe=False))


def _check_candidates(base, candidates, X):
    """Raise unless all candidates and the data are valid; return the layouts."""
    checked, layouts = {}, []
    for params in candidates:
        estimator = _candidate(base, params)
        estimator._validate_params()
        check_auto(estimator)
        shape = repr(estimator.image_shape), estimator.channels_first
        if shape not in checked:
            checked[shape] = estimator._check_samples(X)
        data = checked[shape]
        if not isinstance(estimator.sigma, str):
            check_sigma(estimator.sigma, data.layout, data.feature_names)
        layouts.append(data.layout)
    return layouts


def _cut(base, candidates, layouts, splits, n_workers):
    """Chunks of fits that can run side by side, and why some are no stacks."""
    groups = defaultdict(list)
    for split, (train, _) in enumerate(splits):
        for i, params in enumerate(candidates):
            groups[_group(params, len(train))].append(Fit(i, split, params))
    chunks, reasons = [], []
    for (*_, n_train), fits in groups.items():
        estimator = _candidate(base, fits[0].params)
        layout = layouts[fits[0].candidate]
        reason, size, n_operations = limit_of_stack(estimator, layout)
        n_operations *= min(estimator.batch_size, n_train)
        if reason and reason not in reasons:
            reasons.append(reason)
        # So that no worker waits for others, and chunks are of about equal size.
        size = min(size, math.ceil(len(fits) / n_workers))
        size = math.ceil(len(fits) / math.ceil(len(fits) / size))
        for start in range(0, len(fits), size):
            part = fits[start : start + size]
            n_epochs = len(part) * count_epochs(estimator, n_train)
            chunks.append(Chunk(part, not reason, n_epochs, len(part) * n_operations))
    return chunks, reasons


def _group(params, n_train):
    """Key of what a candidate must share with others in its stack."""
    sigma = params.get("sigma")
    sigma = "sigma" in params, sigma if isinstance(sigma, str) else None
    others = frozenset(
        (name, value if isinstance(value, str | Number) else id(value))
        for name, value in params.items()
        if name not in ("sigma", "beta", "random_state")
    )
    return sigma, others, n_train
