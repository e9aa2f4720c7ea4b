"""The imputer: fills gaps in tables, as scikit-learn's imputers do."""

from numbers import Real

import numpy as np
from sklearn.base import _fit_context
from sklearn.impute._base import _BaseImputer
from sklearn.pipeline import Pipeline
from sklearn.utils import check_random_state
from sklearn.utils._mask import _get_mask
from sklearn.utils._missing import is_scalar_nan
from sklearn.utils.validation import (
    _check_feature_names_in,
    check_is_fitted,
    validate_data,
)

from ._sigma_vae import SigmaVAE
from ._validation import as_samples
from ._wrapped import arrays_inside, model_of, through_pipeline, unchanged_on_failure

__all__ = ["SigmaVAEImputer"]


class SigmaVAEImputer(_BaseImputer):
    """Imputation by a variational autoencoder.

    A :class:`SigmaVAE` is fitted to the entries that are there. Each missing entry is
    then filled with the mean that the model expects, given the other entries of its
    row. Known entries stay as they are, but in columns that are not kept.

    Parameters
    ----------
    estimator : SigmaVAE or Pipeline, default=None
        Model to fit, of which a clone is used: a :class:`SigmaVAE`, or a pipeline that
        ends in one and whose other steps keep the columns, let NaN pass and have
        ``inverse_transform``, as :class:`~sklearn.preprocessing.StandardScaler` does.
        None stands for ``make_pipeline(StandardScaler(), SigmaVAE(sigma="auto"))``,
        which takes columns in any units.
    missing_values : int or float, default=np.nan
        What stands for a missing entry in `X`. Leave NaN for tables with pandas' NA or
        with null, which become NaN.
    add_indicator : bool, default=False
        Whether to append the columns of a :class:`~sklearn.impute.MissingIndicator`,
        which mark the entries that were missing.
    keep_empty_features : bool, default=False
        Whether columns without any entry in :meth:`fit` are filled with zeros, or
        dropped.
    sample_posterior : bool, default=False
        Whether to fill gaps with a draw from the model, its noise included, in place of
        the mean, for multiple imputation: one fit, and a :meth:`transform` for each
        `random_state`. Draws depend on the order of the rows.
    random_state : int, RandomState instance or None, default=None
        Source of the draws. With an int each call of :meth:`transform` draws the same.
        It is also the ``random_state`` of the SigmaVAE if that has none.

    Attributes
    ----------
    estimator_ : SigmaVAE or Pipeline
        The fitted clone, of the columns that have entries.
    indicator_ : MissingIndicator
        The indicator of missing entries; None if ``add_indicator=False``.
    n_features_in_ : int
        Number of features of the training data.
    feature_names_in_ : ndarray of shape (n_features,)
        Names of the features, if all are strings.

    See Also
    --------
    sklearn.impute.KNNImputer : Imputation by the nearest rows.
    sklearn.impute.IterativeImputer : Imputation by a regression for each column.
    SigmaVAE.denoise : Fills gaps with a model that is fitted already.
    sklearn_sigmavae.metrics.imputation_scorer : Chooses parameters by hidden entries.

    Notes
    -----
    It is assumed that whether an entry is missing does not depend on its value, given
    the entries that are known: data "missing at random" [1]_.

    The mean is that of the last step of a pipeline. Steps that are not linear, such as
    :class:`~sklearn.preprocessing.PowerTransformer`, take it to another number than the
    mean in the units of `X`, closer to the median.

    References
    ----------
    .. [1] D. B. Rubin, "Inference and Missing Data", Biometrika 63(3), 1976.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_sigmavae import SigmaVAE, SigmaVAEImputer
    >>> X, _ = load_iris(return_X_y=True)
    >>> gaps = np.random.default_rng(0).random(X.shape) < 0.2
    >>> vae = SigmaVAE(2, sigma=0.3, max_iter=2)
    >>> imputer = SigmaVAEImputer(vae, random_state=0)
    >>> filled = imputer.fit_transform(np.where(gaps, np.nan, X))
    >>> bool(abs(filled - X)[gaps].mean() < 0.5 * X.std(axis=0).mean())
    True
    """

    _parameter_constraints: dict = {
        **_BaseImputer._parameter_constraints,
        "estimator": [SigmaVAE, Pipeline, None],
        "missing_values": [Real],
        "sample_posterior": ["boolean"],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        estimator=None,
        *,
        missing_values=np.nan,
        add_indicator=False,
        keep_empty_features=False,
        sample_posterior=False,
        random_state=None,
    ):
        super().__init__(
            missing_values=missing_values,
            add_indicator=add_indicator,
            keep_empty_features=keep_empty_features,
        )
        self.estimator = estimator
        self.sample_posterior = sample_posterior
        self.random_state = random_state

    @_fit_context(prefer_skip_nested_validation=False)
    def fit(self, X, y=None):
        """Fit the model to the entries that are there.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training data, with gaps or without, of at least two rows.
        y : Ignored
            Present for API consistency.

        Returns
        -------
        self : SigmaVAEImputer
            The fitted imputer.

        Raises
        ------
        TypeError
            If `estimator` is neither a SigmaVAE nor a pipeline that ends in one, or a
            step of the pipeline cannot be used.
        ValueError
            If a parameter or `X` is not valid: too few rows, infinity, or no entry.
        DivergenceError
            If training diverges, see :meth:`SigmaVAE.fit`. After this, as after any
            error, the imputer is what it was before.

        Examples
        --------
        >>> import numpy as np
        >>> from sklearn_sigmavae import SigmaVAE, SigmaVAEImputer
        >>> X = [[1, 2], [np.nan, 3], [3, 4], [5, 6], [7, np.nan]]
        >>> vae = SigmaVAE(1, sigma=0.5, hidden_layer_sizes=(8,), max_iter=2)
        >>> SigmaVAEImputer(vae, random_state=0).fit(X).n_features_in_
        2
        """
        with unchanged_on_failure(self):
            return self._fit(X)

    def transform(self, X):
        """Fill the gaps of rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows, which may have gaps in any column.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features_out)
            The rows without gaps, in float64, or float32 if `X` is; less the columns
            that had no entry in :meth:`fit`, and with those of the indicator. A row
            without any entry is filled with what the model expects of any row.

        Raises
        ------
        NotFittedError, ValueError, TypeError
            If the imputer is not fitted, or `X` is not valid.

        Examples
        --------
        >>> import numpy as np
        >>> from sklearn.datasets import load_iris
        >>> from sklearn_sigmavae import SigmaVAE, SigmaVAEImputer
        >>> X, _ = load_iris(return_X_y=True)
        >>> vae = SigmaVAE(2, sigma=0.3, max_iter=2, random_state=0)
        >>> imputer = SigmaVAEImputer(vae, sample_posterior=True).fit(X)
        >>> X[0, 2] = np.nan
        >>> draws = [
        ...     imputer.set_params(random_state=i).transform(X)[0, 2] for i in range(9)
        ... ]
        >>> bool(1 < np.mean(draws) < 2), bool(0 < np.std(draws) < 1)
        (True, True)
        """
        check_is_fitted(self)
        X, missing = self._check(X, reset=False)
        indicator = self._transform_indicator(missing)
        has_entries = self._has_entries
        # Only rows with gaps cost time.
        place = np.ix_(missing[:, has_entries].any(axis=1), has_entries)
        rows = X[place]
        if len(rows):
            X[place] = np.where(missing[place], self._fill(rows), rows)
        if self.keep_empty_features:
            X[:, ~has_entries] = 0
        else:
            X = X[:, has_entries]
        return self._concatenate_indicator(X, indicator)

    def get_feature_names_out(self, input_features=None):
        """Name the columns that ``transform`` returns.

        Parameters
        ----------
        input_features : array-like of str of shape (n_features,), default=None
            Names of the features; by default those of the training data, or x0, x1, ...

        Returns
        -------
        names : ndarray of shape (n_features_out,)
            Those of the columns that are kept, and of the indicator.

        Raises
        ------
        NotFittedError, ValueError
            If the imputer is not fitted, or `input_features` are not the names of the
            training data.

        Examples
        --------
        >>> import numpy as np
        >>> from sklearn_sigmavae import SigmaVAE, SigmaVAEImputer
        >>> X = [[1, 2], [np.nan, 3], [3, 4], [5, 6], [7, 8]]
        >>> vae = SigmaVAE(1, sigma=0.5, hidden_layer_sizes=(8,), max_iter=2)
        >>> imputer = SigmaVAEImputer(vae, add_indicator=True, random_state=0)
        >>> imputer.fit(X).get_feature_names_out(["a", "b"]).tolist()
        ['a', 'b', 'missingindicator_a']
        """
        check_is_fitted(self)
        input_features = _check_feature_names_in(self, input_features)
        names = input_features
        if not self.keep_empty_features:
            names = names[self._has_entries]
        return self._concatenate_indicator_feature_names_out(names, input_features)

    def __sklearn_tags__(self):
        """Tags of scikit-learn."""
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    _doc_link_module = SigmaVAE._doc_link_module
    _doc_link_template = SigmaVAE._doc_link_template

    def _fit(self, X):
        estimator = model_of(self, restores=True)
        X, missing = self._check(X, ensure_min_samples=2)
        self._has_entries = ~missing.all(axis=0)
        if not self._has_entries.any():
            raise ValueError("X has no entry to learn from: all are missing.")
        self._fit_indicator(missing)
        with arrays_inside():
            self.estimator_ = estimator.fit(X[:, self._has_entries])
        return self

    def _check(self, X, **kwargs):
        """A copy of the data, NaN where an entry is missing, and where that is."""
        is_nan = is_scalar_nan(self.missing_values)
        X = validate_data(
            self,
            as_samples(X),
            dtype=[np.float64, np.float32],
            ensure_all_finite="allow-nan" if is_nan else True,
            copy=True,
            **kwargs,
        )
        missing = _get_mask(X, self.missing_values)
        X[missing] = np.nan
        return X, missing

    def _fill(self, rows):
        """What the model has in place of rows with gaps, every entry."""
        random_state = check_random_state(self.random_state)

        def restore(vae, rows):
            if self.sample_posterior:
                return vae._draw(rows, random_state)
            return vae._expect(rows)

        with arrays_inside():
            return through_pipeline(self.estimator_, rows, restore)
