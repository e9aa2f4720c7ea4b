"""Picture of data, and of what a model restores of it."""

from numbers import Integral

import numpy as np
from sklearn.utils._optional_dependencies import check_matplotlib_support
from sklearn.utils._param_validation import Interval, validate_params

from ._common import (
    BLUE,
    as_images,
    check_axes,
    check_images,
    check_model,
    draw_images,
    first_images,
    root_mean_square,
)

# With more features than this their names cannot be read.
MAX_NAMES = 50

# Share of its largest value up to which a feature varies by rounding only.
ROUNDING = 1e-6

# Bars that go further to the left are cut.
LOWEST_R2 = -1.0


class ReconstructionDisplay:
    """Picture of data beside what a model restores of it from its codes.

    Images are drawn over their reconstructions. Of a table there is a bar for each
    feature: the share of its variance that is restored. It is recommended to make one
    with :meth:`from_estimator`; the parameters are kept as attributes, as in
    scikit-learn's displays [1]_.

    Parameters
    ----------
    original : ndarray of shape (n_samples, n_features), (n_images, H, W) or \
            (n_images, H, W, C)
        Data, in its units.
    restored : ndarray of the shape of `original`
        What comes back of it, in the same units.
    feature_names : array-like of str of shape (n_features,), default=None
        Names of the features of a table.

    Attributes
    ----------
    error : float
        Root mean squared error of all entries, in the units of the data.
    r2 : ndarray of shape (n_features,)
        Share of the variance of each feature that is restored, at most 1; NaN for
        features that are constant. None for images.
    ax_ : matplotlib Axes
        Axes with the picture.
    figure_ : matplotlib Figure
        Figure containing the picture.

    See Also
    --------
    SigmaVAE.inverse_transform : Decode codes.
    DenoisingDisplay : The same for images with noise.

    References
    ----------
    .. [1] scikit-learn, "Visualizations", in its user guide,
       https://scikit-learn.org/stable/visualizations.html.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_sigmavae import ReconstructionDisplay, SigmaVAE
    >>> X = load_iris(as_frame=True).data
    >>> vae = SigmaVAE(2, sigma=0.2, max_iter=5, random_state=0).fit(X)
    >>> display = ReconstructionDisplay.from_estimator(vae, X)
    >>> display.r2.shape
    (4,)
    """

    def __init__(self, *, original, restored, feature_names=None):
        self.original = original
        self.restored = restored
        self.feature_names = feature_names

    @property
    def error(self):
        """float : Root mean squared error of all entries, in the units of the data."""
        return root_mean_square(self.restored - self.original)

    @property
    def r2(self):
        """ndarray of shape (n_features,) : Share of the variance that is restored."""
        if self.original.ndim > 2:
            return None
        # In units of their own, so that no square leaves the range of floats.
        around = self.original - self.original.mean(axis=0)
        spread = np.abs(around).max(axis=0)
        varies = spread > ROUNDING * np.abs(self.original).max(axis=0)
        unit = np.where(varies, spread, np.nan)
        left = np.square((self.restored - self.original) / unit).sum(axis=0)
        return 1 - left / np.square(around / unit).sum(axis=0)

    @classmethod
    @validate_params(
        {"n_images": [Interval(Integral, 1, None, closed="left")]},
        prefer_skip_nested_validation=True,
    )
    def from_estimator(cls, estimator, X, *, n_images=8, ax=None, **kwargs):
        """Encode and decode data, and draw both.

        Parameters
        ----------
        estimator : SigmaVAE
            Fitted model.
        X : array-like of shape (n_samples, n_features), or images
            Clean data, best such that training has not seen.
        n_images : int, default=8
            Of images, how many to take: the first ones. Of a table all rows count.
        ax : matplotlib Axes, default=None
            Axes to draw on; by default those of a new figure.
        **kwargs : dict
            As for :meth:`plot`.

        Returns
        -------
        display : ReconstructionDisplay
            It holds the figure and its data.

        Raises
        ------
        TypeError
            If the estimator is no SigmaVAE, or `ax` no axes.
        ValueError
            If `X` does not fit the model, has one row of a table or images of other
            than one channel or three, or `n_images` is not positive.
        ImportError
            If matplotlib is not installed.

        Examples
        --------
        >>> from sklearn.datasets import load_digits
        >>> from sklearn_sigmavae import ReconstructionDisplay, SigmaVAE
        >>> X = load_digits().images
        >>> vae = SigmaVAE(16, sigma=1.5, max_iter=2, random_state=0).fit(X[:1500])
        >>> display = ReconstructionDisplay.from_estimator(vae, X[1500:], cmap="gray_r")
        >>> display.restored.shape
        (8, 8, 8)
        """
        owner = f"{cls.__name__}.from_estimator"
        check_matplotlib_support(owner)
        check_model(estimator, owner)
        check_axes(ax, owner)
        layout = estimator.module_.layout
        is_table = len(layout.input_shape) == 1
        if not is_table:
            check_images(estimator, owner)
            X = first_images(X, n_images)
        restored = np.asarray(estimator.inverse_transform(estimator.transform(X)))
        original = np.asarray(X, dtype=restored.dtype)
        if is_table and len(original) < 2:
            raise ValueError(
                f"{owner} needs two rows of a table at least, to tell how much they "
                "vary. Got one."
            )
        if is_table:
            names = getattr(estimator, "feature_names_in_", None)
            display = cls(original=original, restored=restored, feature_names=names)
        else:
            display = cls(
                original=as_images(original, layout),
                restored=as_images(restored, layout),
            )
        return display.plot(ax, **kwargs)

    def plot(self, ax=None, **kwargs):
        """Draw the data and what is restored of it.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; by default those of a new figure.
        **kwargs : dict
            For :meth:`matplotlib.axes.Axes.imshow`, or, for a table,
            :meth:`matplotlib.axes.Axes.barh`.

        Returns
        -------
        self : ReconstructionDisplay
            With the picture in ``ax_`` and ``figure_``.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        TypeError
            If `ax` is no axes.

        Examples
        --------
        >>> import numpy as np
        >>> from sklearn_sigmavae import ReconstructionDisplay
        >>> X = np.array([[1.0, 5.0], [2.0, 3.0], [3.0, 4.0]])
        >>> display = ReconstructionDisplay(
        ...     original=X, restored=X + [[0.1, 0.0]], feature_names=["height", "age"]
        ... )
        >>> display.plot().ax_.get_xlabel()
        'Share of the variance that is restored (R²)'
        """
        owner = f"{type(self).__name__}.plot"
        check_matplotlib_support(owner)
        check_axes(ax, owner)
        if self.original.ndim == 2:
            ax = self._plot_table(ax, **kwargs)
        else:
            labels = ["original", f"restored,\nerror {self.error:.3g}"]
            limits = self.original.min(), self.original.max()
            rows = [self.original, self.restored]
            ax = draw_images(ax, rows, labels, limits, **kwargs)
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def _plot_table(self, ax, **kwargs):
        import matplotlib.pyplot as plt

        n_features = self.original.shape[1]
        named = n_features <= MAX_NAMES
        if ax is None:
            size = 6.4, 1.2 + 0.22 * min(n_features, MAX_NAMES)
            _, ax = plt.subplots(figsize=size, layout="constrained")
        places, r2 = np.arange(n_features), self.r2
        ax.barh(places, r2, **{"color": BLUE, "height": 0.75} | kwargs)
        if named:
            names = self.feature_names
            if names is None:
                names = [f"feature {i}" for i in places]
            names = [
                f"{name} (constant)" if np.isnan(value) else name
                for name, value in zip(names, r2, strict=True)
            ]
            ax.set_yticks(places, names, fontsize="small")
        else:
            ax.set_ylabel("feature")
        # The first feature on top, as in a list.
        ax.set_ylim(n_features - 0.4, -0.6)
        lowest = np.nanmin(r2, initial=0.0)
        ax.set_xlim(max(1.05 * lowest, LOWEST_R2), 1)
        ax.set_xlabel("Share of the variance that is restored (R²)")
        ax.grid(axis="x", color="0.9", linewidth=0.6)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
        return ax
