"""The outlier detector: rows that a model finds unlikely, as in scikit-learn."""

from numbers import Real

import numpy as np
from sklearn.base import BaseEstimator, OutlierMixin, _fit_context
from sklearn.pipeline import Pipeline
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from ._sigma_vae import SigmaVAE
from ._wrapped import arrays_inside, model_of, unchanged_on_failure

__all__ = ["SigmaVAEOutlierDetector"]

# John Tukey's lower fence lies this many interquartile ranges below the quartile.
_FENCE = 1.5


class SigmaVAEOutlierDetector(OutlierMixin, BaseEstimator):
    """Outlier detection by the likelihood of a variational autoencoder.

    A :class:`SigmaVAE` is fitted to all rows, and those to which it gives the lowest
    scores are outliers. :meth:`score_features` says which columns of a row are odd.

    Parameters
    ----------
    estimator : SigmaVAE or Pipeline, default=None
        Model to fit, of which a clone is used: a :class:`SigmaVAE`, or a pipeline that
        ends in one. None stands for ``make_pipeline(StandardScaler(),
        SigmaVAE(sigma="auto"))``, which takes columns in any units.
    contamination : "auto" or float in (0, 0.5], default="auto"
        Share of the training rows to take for outliers. With "auto" these are the rows
        whose score is more than 1.5 interquartile ranges below the lower quartile [1]_.
    random_state : int, RandomState instance or None, default=None
        The ``random_state`` of the SigmaVAE, if that has none.

    Attributes
    ----------
    estimator_ : SigmaVAE or Pipeline
        The fitted clone.
    offset_ : float
        Score below which a row is an outlier, in nats.
    n_features_in_ : int
        Number of features of the training data.
    feature_names_in_ : ndarray of shape (n_features,)
        Names of the features, if all are strings.

    See Also
    --------
    sklearn.ensemble.IsolationForest : Outliers by how soon random cuts isolate them.
    sklearn.neighbors.LocalOutlierFactor : Outliers by the density of neighbors.
    SigmaVAE.score_samples : The scores, of a model that is fitted already.

    Notes
    -----
    The model has learnt the training rows, so new rows of the same kind score lower,
    and more of them are outliers than `contamination` says; with few rows and many
    columns far more. Where that counts, set ``offset_`` to a quantile of the scores of
    rows that were held out of :meth:`fit`.

    Rows may have gaps, NaN. A row is then judged by the entries that are known, of
    which each adds its own log-density: sort rows with many gaps out before.

    References
    ----------
    .. [1] J. W. Tukey, "Exploratory Data Analysis", Addison-Wesley, 1977.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_sigmavae import SigmaVAE, SigmaVAEOutlierDetector
    >>> X, _ = load_iris(return_X_y=True)
    >>> X[7, 1] += 5  # a sepal that is too wide
    >>> vae = SigmaVAE(2, sigma=0.3, max_iter=2)
    >>> detector = SigmaVAEOutlierDetector(vae, random_state=0).fit(X)
    >>> int(detector.predict(X)[7])
    -1
    >>> int(detector.score_features(X)[7].argmin())
    1
    """

    _parameter_constraints: dict = {
        "estimator": [SigmaVAE, Pipeline, None],
        "contamination": [StrOptions({"auto"}), Interval(Real, 0, 0.5, closed="right")],
        "random_state": ["random_state"],
    }

    def __init__(self, estimator=None, *, contamination="auto", random_state=None):
        self.estimator = estimator
        self.contamination = contamination
        self.random_state = random_state

    @_fit_context(prefer_skip_nested_validation=False)
    def fit(self, X, y=None):
        """Fit the model, and find the score below which rows are outliers.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), or images
            Training data, with or without outliers, of at least two rows.
        y : Ignored
            Present for API consistency.

        Returns
        -------
        self : SigmaVAEOutlierDetector
            The fitted detector.

        Raises
        ------
        TypeError
            If `estimator` is neither a SigmaVAE nor a pipeline that ends in one.
        ValueError
            If a parameter or `X` is not valid.
        DivergenceError
            If training diverges, see :meth:`SigmaVAE.fit`. After this, as after any
            error, the detector is what it was before.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from sklearn_sigmavae import SigmaVAE, SigmaVAEOutlierDetector
        >>> X, _ = load_iris(return_X_y=True)
        >>> vae = SigmaVAE(2, sigma=0.3, max_iter=2, random_state=0)
        >>> detector = SigmaVAEOutlierDetector(vae, contamination=0.1)
        >>> int((detector.fit_predict(X) == -1).sum())
        15
        """
        with unchanged_on_failure(self), arrays_inside():
            self.estimator_ = model_of(self).fit(X)
            scores = self.score_samples(X)
            if self.contamination == "auto":
                lower, upper = np.percentile(scores, [25, 75])
                self.offset_ = float(lower - _FENCE * (upper - lower))
            else:
                self.offset_ = float(np.percentile(scores, 100 * self.contamination))
        return self

    def score_samples(self, X):
        """Score of each row: a bound on its log-likelihood by the model.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), or images
            Rows.

        Returns
        -------
        score : ndarray of shape (n_samples,)
            In nats, in the units of the last step: the lower, the less likely.

        Raises
        ------
        NotFittedError, ValueError, TypeError
            If the detector is not fitted, or `X` is not valid.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from sklearn_sigmavae import SigmaVAE, SigmaVAEOutlierDetector
        >>> X, _ = load_iris(return_X_y=True)
        >>> vae = SigmaVAE(2, sigma=0.3, max_iter=2, random_state=0)
        >>> detector = SigmaVAEOutlierDetector(vae).fit(X)
        >>> bool((detector.score_samples(X + 9) < detector.score_samples(X)).all())
        True
        """
        check_is_fitted(self)
        with arrays_inside():
            return self.estimator_.score_samples(X)

    def score_features(self, X):
        """Expected log-density of each entry: what makes a row likely or not.

        See :meth:`SigmaVAE.score_features`.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), or images
            Rows.

        Returns
        -------
        score : ndarray of the shape of what the last step gets from `X`
            In nats, in the units of the last step.

        Raises
        ------
        NotFittedError, ValueError, TypeError
            If the detector is not fitted, or `X` is not valid.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from sklearn_sigmavae import SigmaVAE, SigmaVAEOutlierDetector
        >>> X, _ = load_iris(return_X_y=True)
        >>> vae = SigmaVAE(2, sigma=0.3, max_iter=2, random_state=0)
        >>> SigmaVAEOutlierDetector(vae).fit(X).score_features(X).shape
        (150, 4)
        """
        check_is_fitted(self)
        with arrays_inside():
            model = self.estimator_
            while isinstance(model, Pipeline):
                X = model[:-1].transform(X) if len(model) > 1 else X
                model = model[-1]
            return model.score_features(X)

    def decision_function(self, X):
        """Score of each row, less :attr:`offset_`: outliers are below zero.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), or images
            Rows.

        Returns
        -------
        score : ndarray of shape (n_samples,)
            In nats.

        Raises
        ------
        NotFittedError, ValueError, TypeError
            If the detector is not fitted, or `X` is not valid.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from sklearn_sigmavae import SigmaVAE, SigmaVAEOutlierDetector
        >>> X, _ = load_iris(return_X_y=True)
        >>> vae = SigmaVAE(2, sigma=0.3, max_iter=2, random_state=0)
        >>> detector = SigmaVAEOutlierDetector(vae).fit(X)
        >>> bool((detector.decision_function(X + 9) < 0).all())
        True
        """
        return self.score_samples(X) - self.offset_

    def predict(self, X):
        """Tell outliers from others.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), or images
            Rows.

        Returns
        -------
        kind : ndarray of shape (n_samples,)
            −1 for outliers, 1 for others.

        Raises
        ------
        NotFittedError, ValueError, TypeError
            If the detector is not fitted, or `X` is not valid.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from sklearn_sigmavae import SigmaVAE, SigmaVAEOutlierDetector
        >>> X, _ = load_iris(return_X_y=True)
        >>> vae = SigmaVAE(2, sigma=0.3, max_iter=2, random_state=0)
        >>> SigmaVAEOutlierDetector(vae).fit(X).predict(X[:1] + 9).tolist()
        [-1]
        """
        return np.where(self.decision_function(X) < 0, -1, 1)

    @property
    def n_features_in_(self):
        """int : Number of features of the training data."""
        return self.estimator_.n_features_in_

    @property
    def feature_names_in_(self):
        """ndarray of shape (n_features,) : Names of the features."""
        return self.estimator_.feature_names_in_

    def __sklearn_tags__(self):
        """Tags of scikit-learn."""
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    _doc_link_module = SigmaVAE._doc_link_module
    _doc_link_template = SigmaVAE._doc_link_template
