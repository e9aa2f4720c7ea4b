"""Grid search that trains the candidates of a grid, times folds, side by side."""

import math
import time
import warnings
from collections import defaultdict
from dataclasses import dataclass
from itertools import chain
from numbers import Number
from traceback import format_exception

import numpy as np
import torch
from joblib import Parallel, delayed, effective_n_jobs
from joblib.parallel import get_active_backend
from sklearn.base import _fit_context, clone
from sklearn.metrics._scorer import _MultimetricScorer
from sklearn.model_selection import GridSearchCV, ParameterGrid, check_cv
from sklearn.model_selection._search import _search_estimator_has
from sklearn.model_selection._validation import (
    _insert_error_scores,
    _score,
    _warn_or_raise_about_fit_failures,
)
from sklearn.utils import _safe_indexing, check_random_state, indexable
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import (
    _check_method_params,
    _num_samples,
    check_is_fitted,
)

from ._device import DATA_FRACTION
from ._outcome import gather_remarks
from ._progress import MovesBar, progress
from ._sigma_vae import SigmaVAE
from ._stack import NotStackableError, stack_networks
from ._start import draw_seeds, make_networks, prepare
from ._training import Plan, train_stack
from ._validation import as_samples, check_sigma, check_splits, resolve_device

# Points at which the bound of held-out rows is taken, about.
N_EVALUATED = 2**11

# What the members of a stack may differ in.
STACKED = ("sigma", "beta", "random_state")

# Memory that a stack on the CPU may take: what its caches hold, or a few times that,
# beyond which larger stacks are no faster.
STACK_BYTES_ON_CPU = 2**26


class BatchedGridSearchCV(GridSearchCV):
    """Grid search over a :class:`SigmaVAE` at the price of a few fits.

    A :class:`~sklearn.model_selection.GridSearchCV` [1]_ in all that it is given and
    gives, but candidates that differ only in ``sigma``, ``beta`` or ``random_state``,
    times folds, are trained together, as one stack of models: each with its own
    weights, batches, steps, held-out rows and best epoch, and to the scores that it
    would reach alone.

    Other parameters split the grid into groups, each with its own stacks, and so do
    training sets of different size. A stack takes at most 64 MB on the CPU, beyond
    which it would be no faster, and half of the free memory on a CUDA device; larger
    ones are cut into chunks. What cannot be trained in a stack is trained one by one,
    which a warning tells: candidates with ``callbacks`` or an optimizer of their own,
    and networks with other layers than fully connected ones.

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
        Number of chunks that run at a time, each in a process of its own. One process
        uses all cores; more are for many cores, or a cluster
        (``joblib.parallel_config(backend="dask")``).
    refit : bool, str or callable, default=True
        Whether, and by which score, to fit the best candidate to all of the data.
    cv : int, cross-validation generator or iterable, default=None
        How to split; 5 folds by default.
    verbose : int, default=0
        With 1 or more, one progress bar for the whole search.
    pre_dispatch : int or str, default='2*n_jobs'
        Number of chunks that are dispatched at a time.
    error_score : 'raise' or numeric, default=np.nan
        Score of a candidate whose training fails, by diverging say, in the units of the
        other scores.
    return_train_score : bool, default=False
        Whether to score on the training rows too.

    Attributes
    ----------
    cv_results_ : dict of ndarray of shape (n_candidates,)
        As of :class:`~sklearn.model_selection.GridSearchCV`, and so are the others. The
        time of a fit is that of its chunk, divided by the number of fits in it.
    best_estimator_ : SigmaVAE
        The best candidate, fitted to all of the data.
    best_score_ : float
        Its mean score on the test folds: by default the bound in nats per row.
    best_params_ : dict
        Its parameters.
    best_index_ : int
        Its index in ``cv_results_``.
    scorer_ : callable or dict
        The scorer, or the scorers.
    n_splits_ : int
        Number of folds.
    refit_time_ : float
        Seconds that the fit to all of the data took.
    multimetric_ : bool
        Whether there are several scores.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : ndarray of shape (n_features,)
        Names of the features, if all are strings.

    See Also
    --------
    sigma_path : Models along a path of ``sigma``, each started at the one before.

    Notes
    -----
    The models of the search compute their scores in float32, also for data in float64:
    to 1e-6 or so of a score. Parameters and folds are checked before any training: a
    candidate that is not valid raises, whatever ``error_score``.

    References
    ----------
    .. [1] scikit-learn's user guide, "Tuning the hyper-parameters of an estimator",
       https://scikit-learn.org/stable/modules/grid_search.html

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
            For scorers that use it, and splitters.
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
            Once for all fits that no epoch of which improved on their start, and once
            for those that ended while their held-out bound was rising.

        Examples
        --------
        Choose by rows of other groups than those that were trained on:

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
        _check_estimator(self.estimator)
        scorers, refit_metric = self._get_scorers()
        X, y = indexable(as_samples(X), y)
        params = _check_method_params(X, params=params)
        routed = self._get_routed_params_for_fit(params)
        base = clone(self.estimator)
        candidates = list(ParameterGrid(self.param_grid))
        if not candidates:
            raise ValueError(
                "The 'param_grid' parameter of BatchedGridSearchCV holds no candidates."
            )
        cv = check_cv(self.cv, y, classifier=False)
        splits = check_splits(cv.split(X, y, **routed.splitter.split))
        layouts = _check_candidates(base, candidates, X)
        chunks = self._cut(base, candidates, layouts, splits)
        common = {
            "base": base,
            "splits": splits,
            "scorers": scorers,
            "fit_params": routed.estimator.fit,
            "score_params": routed.scorer.score,
            "return_train_score": self.return_train_score,
            "error_score": self.error_score,
        }
        by_fit = self._run(chunks, X, y, common)
        out = [
            by_fit[candidate, split]
            for candidate in range(len(candidates))
            for split in range(len(splits))
        ]
        remarks = [r for result in out for r in result.pop("remarks", ())]
        _warn_or_raise_about_fit_failures(out, self.error_score)
        if callable(self.scoring):
            _insert_error_scores(out, self.error_score)
        results = self._format_results(candidates, len(splits), out)
        found = {"cv_results_": results, "n_splits_": len(splits)}
        first = out[0]["test_scores"]
        found["multimetric_"] = isinstance(first, dict)
        if callable(self.scoring) and found["multimetric_"]:
            self._check_refit_for_multimetric(first)
            refit_metric = self.refit
        if self.refit or not found["multimetric_"]:
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
        multimetric = isinstance(scorers, _MultimetricScorer)
        found["scorer_"] = scorers._scorers if multimetric else scorers
        for name in [name for name in vars(self) if name.endswith("_")]:
            delattr(self, name)
        vars(self).update(found)
        # When all is done, so that nothing is lost where warnings are errors.
        gather_remarks(remarks, len(out))
        return self

    # What the best model does that scikit-learn's searches do not pass on.

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
            The search. Its estimator is changed too, as the steps of a pipeline are,
            and so are models of later fits.

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
        AttributeError
            If ``refit=False``, so that there is no best model.
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
        return self._best().get_feature_names_out(input_features)

    @available_if(_search_estimator_has("denoise"))
    def denoise(self, X, **params):
        """Clean rows from noisy or incomplete ones, by the best model.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), or images
            Noisy rows. NaN stands for a missing entry.
        **params : dict
            Those of :meth:`SigmaVAE.denoise`, ``noise_scale`` say.

        Returns
        -------
        X : ndarray, same shape as `X`
            In its units.

        Raises
        ------
        AttributeError
            If ``refit=False``, so that there is no best model.
        NotFittedError
            If the search is not fitted.
        ValueError, TypeError
            As :meth:`SigmaVAE.denoise`.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from sklearn_sigmavae import BatchedGridSearchCV, SigmaVAE
        >>> X, _ = load_iris(return_X_y=True)
        >>> vae = SigmaVAE(2, hidden_layer_sizes=(16,), max_iter=2, random_state=0)
        >>> search = BatchedGridSearchCV(vae, {"sigma": [0.3, 1]}, cv=2).fit(X)
        >>> search.denoise(X, noise_scale=0.5).shape
        (150, 4)
        """
        return self._best().denoise(X, **params)

    @available_if(_search_estimator_has("posterior"))
    def posterior(self, X, **params):
        """Mean and standard deviation of the posterior of the codes, by the best model.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), or images
            Rows, clean or noisy. NaN stands for a missing entry.
        **params : dict
            Those of :meth:`SigmaVAE.posterior`, ``noise_scale`` say.

        Returns
        -------
        mean, std : ndarray of shape (n_samples, n_components)
            Means and standard deviations, in units of those of the prior.

        Raises
        ------
        AttributeError
            If ``refit=False``, so that there is no best model.
        NotFittedError
            If the search is not fitted.
        ValueError, TypeError
            As :meth:`SigmaVAE.posterior`.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from sklearn_sigmavae import BatchedGridSearchCV, SigmaVAE
        >>> X, _ = load_iris(return_X_y=True)
        >>> vae = SigmaVAE(2, hidden_layer_sizes=(16,), max_iter=2, random_state=0)
        >>> search = BatchedGridSearchCV(vae, {"sigma": [0.3, 1]}, cv=2).fit(X)
        >>> mean, std = search.posterior(X, noise_scale=0.5)
        >>> std.shape
        (150, 2)
        """
        return self._best().posterior(X, **params)

    @available_if(_search_estimator_has("sample"))
    def sample(self, n_samples=1, **params):
        """Draw from the best model.

        Parameters
        ----------
        n_samples : int, default=1
            How many rows to draw.
        **params : dict
            Those of :meth:`SigmaVAE.sample`.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features), or images
            Data in the shape and units of the training data.

        Raises
        ------
        AttributeError
            If ``refit=False``, so that there is no best model.
        NotFittedError
            If the search is not fitted.
        ValueError
            If a parameter is not valid.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from sklearn_sigmavae import BatchedGridSearchCV, SigmaVAE
        >>> X, _ = load_iris(return_X_y=True)
        >>> vae = SigmaVAE(2, hidden_layer_sizes=(16,), max_iter=2, random_state=0)
        >>> search = BatchedGridSearchCV(vae, {"sigma": [0.3, 1]}, cv=2).fit(X)
        >>> search.sample(10, random_state=0).shape
        (10, 4)
        """
        return self._best().sample(n_samples, **params)

    @available_if(_search_estimator_has("save"))
    def save(self, path):
        """Write the best model to a file, from which :meth:`SigmaVAE.load` reads it.

        Parameters
        ----------
        path : str or path-like
            The file. It holds the model and nothing of the search.

        Raises
        ------
        AttributeError
            If ``refit=False``, so that there is no best model.
        NotFittedError
            If the search is not fitted.
        OSError, ValueError, TypeError
            As :meth:`SigmaVAE.save`.

        Examples
        --------
        >>> import os, tempfile
        >>> from sklearn.datasets import load_iris
        >>> from sklearn_sigmavae import BatchedGridSearchCV, SigmaVAE
        >>> X, _ = load_iris(return_X_y=True)
        >>> vae = SigmaVAE(2, hidden_layer_sizes=(16,), max_iter=2, random_state=0)
        >>> search = BatchedGridSearchCV(vae, {"sigma": [0.3, 1]}, cv=2).fit(X)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "best.safetensors")
        ...     search.save(path)
        ...     best = SigmaVAE.load(path, device="cpu")
        >>> best.sigma_ == search.best_params_["sigma"]
        True
        """
        self._best().save(path)

    def _best(self):
        check_is_fitted(self, "best_estimator_")
        return self.best_estimator_

    def _cut(self, base, candidates, layouts, splits):
        """Chunks of fits that can run side by side."""
        groups = defaultdict(list)
        for split, (train, _) in enumerate(splits):
            for i, params in enumerate(candidates):
                groups[_group(params, len(train))].append((i, split))
        chunks, reasons = [], {}
        for members in groups.values():
            first = members[0][0]
            estimator = _candidate(base, candidates[first])
            reason, size = _limit(estimator, layouts[first])
            if reason:
                reasons[reason] = None
            # So that no process waits for others, and chunks are of about equal size.
            size = min(size, math.ceil(len(members) / effective_n_jobs(self.n_jobs)))
            n_chunks = math.ceil(len(members) / size)
            for part in np.array_split(np.array(members), n_chunks):
                fits = [tuple(member) for member in part.tolist()]
                params = [candidates[i] for i, _ in fits]
                n_epochs = len(fits) * int(estimator.max_iter)
                chunks.append(Chunk(fits, params, not reason, n_epochs))
        if reasons:
            warnings.warn(
                "Some candidates cannot be trained in a stack and are trained one by "
                f"one: {'; '.join(reasons)}.",
                # Past fit and scikit-learn's wrapper of it.
                stacklevel=4,
            )
        return chunks

    def _run(self, chunks, X, y, common):
        """Results of all fits, by candidate and split."""
        backend, _ = get_active_backend()
        parallel = Parallel(
            n_jobs=self.n_jobs,
            pre_dispatch=self.pre_dispatch,
            # As they come, where somebody watches and it can be done.
            return_as="generator_unordered"
            if self.verbose and backend.supports_return_generator
            else "list",
        )
        in_process = effective_n_jobs(self.n_jobs) == 1
        results = {}
        n_epochs = sum(chunk.n_epochs for chunk in chunks)
        with progress(n_epochs, self.verbose, type(self).__name__) as bar:
            # Epochs in other processes are told when all of a chunk have passed.
            seen = bar if in_process else None
            for number, of_chunk in parallel(
                delayed(_evaluate)(number, chunk, X, y, common, seen)
                for number, chunk in enumerate(chunks)
            ):
                results |= zip(chunks[number].members, of_chunk, strict=True)
                if bar is not None and not in_process:
                    bar.update(chunks[number].n_epochs)
        return results


@dataclass
class Chunk:
    """Fits that run together.

    Attributes
    ----------
    members : list of (int, int)
        Candidate and split of each.
    params : list of dict
        Parameters of each.
    is_stack : bool
        Whether they are trained as a stack, or one by one.
    n_epochs : int
        Their number of epochs, all together.
    """

    members: list
    params: list
    is_stack: bool
    n_epochs: int


# The data is an argument of its own, so that a cluster gets it once.
def _evaluate(number, chunk, X, y, common, bar):
    """Train and score the members of a chunk; return its number and the results."""
    return number, Evaluation(X, y, **common).run(chunk, bar)


@dataclass
class Evaluation:
    """Data, and what is done with it in every fit.

    Attributes
    ----------
    X, y
        All of the data.
    base : SigmaVAE
        The estimator whose parameters the candidates change.
    splits : list of (ndarray, ndarray)
        Training and test rows of each split.
    scorers : callable
        Scorer, or several in one.
    fit_params, score_params : dict
        Given to ``fit`` and to the scorers.
    return_train_score, error_score
        As of the search.
    """

    X: object
    y: object
    base: SigmaVAE
    splits: list
    scorers: object
    fit_params: dict
    score_params: dict
    return_train_score: bool
    error_score: object

    def run(self, chunk, bar):
        """Train and score the members of a chunk; return their results."""
        start = time.time()
        estimators = [_candidate(self.base, params) for params in chunk.params]
        if chunk.is_stack:
            outcomes = self._train_stack(chunk, estimators, bar)
        else:
            outcomes = [
                self._train_one(estimator, split)
                for estimator, (_, split) in zip(estimators, chunk.members, strict=True)
            ]
            if bar is not None:
                bar.update(chunk.n_epochs)
        seconds = (time.time() - start) / len(estimators)
        return [
            self._result(outcome, split, seconds)
            for outcome, (_, split) in zip(outcomes, chunk.members, strict=True)
        ]

    def _training_rows(self, split):
        train, _ = self.splits[split]
        X, y = (
            None if array is None else _safe_indexing(array, train)
            for array in (self.X, self.y)
        )
        return X, y, _check_method_params(self.X, self.fit_params, indices=train)

    def _train_one(self, estimator, split):
        X, y, fit_params = self._training_rows(split)
        try:
            return estimator._fit(X, y, **fit_params)
        except Exception as error:
            return error

    # Also under a caller's torch.no_grad() or torch.inference_mode().
    @torch.inference_mode(False)
    @torch.enable_grad()
    def _train_stack(self, chunk, estimators, bar):
        """Fitted estimators, or exceptions."""
        outcomes, starts, by_split = list(estimators), {}, {}
        for i, (_, split) in enumerate(chunk.members):
            try:
                if split not in by_split:
                    X, _, fit_params = self._training_rows(split)
                    by_split[split] = (
                        _check_fit_data(estimators[i], X, **fit_params),
                        estimators[i],
                    )
                    by_split[split][0].is_shared = True
                seeds = draw_seeds(check_random_state(estimators[i].random_state))
                starts[i] = prepare(estimators[i], by_split[split][0], seeds)
                starts[i].vae.takes_float64 = False
            except Exception as error:
                outcomes[i] = error
        nets = _train(list(starts.values()), Plan.of_fit(estimators[0]), bar)
        for i, net in zip(starts, nets, strict=True):
            if isinstance(net, Exception):
                outcomes[i] = net
            else:
                outcomes[i]._adopt(net, like=by_split[chunk.members[i][1]][1])
        return outcomes

    def _result(self, outcome, split, seconds):
        """What scikit-learn formats results from."""
        train, test = self.splits[split]
        result = {
            "fit_time": seconds,
            "score_time": 0.0,
            "n_test_samples": _num_samples(test),
            "fit_error": None,
        }
        if not isinstance(outcome, Exception):
            result["remarks"] = outcome.net_.remarks_
        kinds = {"test_scores": test}
        if self.return_train_score:
            kinds["train_scores"] = train
        if isinstance(outcome, Exception):
            if not isinstance(self.error_score, Number):
                raise outcome
            result["fit_error"] = "".join(format_exception(outcome))
            scores = self.error_score
            if isinstance(self.scorers, _MultimetricScorer):
                scores = dict.fromkeys(self.scorers._scorers, scores)
            return result | dict.fromkeys(kinds, scores)
        for kind, rows in kinds.items():
            start = time.time()
            result[kind] = _score(
                outcome,
                _safe_indexing(self.X, rows),
                None if self.y is None else _safe_indexing(self.y, rows),
                self.scorers,
                _check_method_params(self.X, self.score_params, indices=rows),
                self.error_score,
            )
            if kind == "test_scores":
                result["score_time"] = time.time() - start
        return result


def _check_fit_data(estimator, X, *, X_val=None):
    # It takes what fit takes, and no more.
    return estimator._check_training_data(X, X_val)


def _train(starts, plan, bar):
    """Nets or exceptions; smaller stacks where memory is short."""
    if not starts:
        return []
    callbacks = [MovesBar(bar, len(starts))] if bar is not None else []
    try:
        return train_stack(starts, plan, callbacks)
    except MemoryError as error:
        half = len(starts) // 2
        if not half:
            return [error]
    except Exception as error:
        return [error] * len(starts)
    return [
        net
        for part in (starts[:half], starts[half:])
        for net in _train(part, plan, bar)
    ]


def _candidate(base, params):
    # Parameters are cloned too, since some are estimators themselves.
    return clone(base).set_params(**clone(params, safe=False))


# Checks, before any training


def _check_estimator(estimator):
    if not isinstance(estimator, SigmaVAE):
        raise TypeError(
            "The 'estimator' parameter of BatchedGridSearchCV must be a SigmaVAE. Got "
            f"{type(estimator).__name__} instead. For a pipeline, or any other "
            "estimator, use sklearn.model_selection.GridSearchCV."
        )


def _check_candidates(base, candidates, X):
    """Raise unless all candidates and the data are valid; return the layouts."""
    checked, layouts = {}, []
    for params in candidates:
        estimator = _candidate(base, params)
        estimator._validate_params()
        shape = repr(estimator.image_shape), estimator.channels_first
        if shape not in checked:
            data = estimator._check_training_data(X)
            checked[shape] = data.layout, data.feature_names
        layout, names = checked[shape]
        if not isinstance(estimator.sigma, str):
            check_sigma(estimator.sigma, layout, names)
        layouts.append(layout)
    return layouts


# Cutting the grid into stacks


def _group(params, n_train):
    """Key of what a candidate must share with others in its stack."""
    key = [("rows", n_train)]
    for name, value in params.items():
        if name == "sigma":
            key.append((name, isinstance(value, str)))
        elif name not in STACKED:
            simple = isinstance(value, str | Number)
            key.append((name, value if simple else id(value)))
    return tuple(sorted(key, key=repr))


def _limit(estimator, layout):
    """Why a candidate cannot be trained in a stack, or None; and how many can."""
    if estimator.callbacks:
        return "their callbacks would see a stack instead of one model", 1
    if estimator.checkpoint_dir is not None:
        return "checkpoints are of one model", 1
    if not isinstance(estimator.optimizer, str):
        return "an optimizer of your own may mix the members of a stack", 1
    networks = make_networks(estimator, layout, seed=0)
    try:
        stack_networks([networks[:2]])
    except NotStackableError as error:
        return str(error), 1
    device = resolve_device(estimator.device)
    if device.type == "cuda":
        budget = DATA_FRACTION * torch.cuda.mem_get_info(device)[0]
    else:
        budget = STACK_BYTES_ON_CPU
    return None, max(1, int(budget // _bytes_of_member(estimator, device, *networks)))


def _bytes_of_member(estimator, device, encoder, decoder, width, *rest):
    """Memory that training a member of a stack takes, about."""
    parameters = chain(encoder.parameters(), decoder.parameters())
    # Weights, the best ones, gradients and two moments.
    n_numbers = 5 * sum(parameter.numel() for parameter in parameters)
    # What the layers make of a batch, which the gradients need.
    n_layers = sum(1 for _ in chain(encoder.modules(), decoder.modules()))
    n_numbers += n_layers * width * estimator.batch_size
    # And of the held-out rows, which on the CPU come a few at a time.
    if device.type != "cpu":
        n_numbers += 3 * width * N_EVALUATED
    return 4 * n_numbers
