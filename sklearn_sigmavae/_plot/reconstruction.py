"""Picture of data, and of what a model restores of it."""

from dataclasses import dataclass

import numpy as np

from .._validation import COUNT, check_params
from . import _common

# The names of more features would not be legible.
MAX_NAMES = 50

# Bars that extend further to the left are cut off.
LOWEST_R2 = -1.0


@dataclass(kw_only=True, eq=False, repr=False)
class ReconstructionDisplay:
    """Picture of data beside what a model restores of it from its codes.

    Images lie above their reconstructions; a table has a bar for each feature, the
    restored share of its variance. Create a display with :meth:`from_estimator`.
    Parameters are stored as attributes.

    Parameters
    ----------
    original : ndarray of shape (n_samples, n_features) or (n_images, H, W[, C])
        Data, in its units.
    restored : ndarray of the shape of `original`
        Reconstruction of the data, in the same units.
    feature_names : array-like of str of shape (n_features,), default=None
        Names of the features of a table.

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes and Figure
        Axes with the picture, and their figure.

    See Also
    --------
    SigmaVAE.inverse_transform : Decode codes.
    DenoisingDisplay : The same for images with noise.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_sigmavae import ReconstructionDisplay, SigmaVAE
    >>> X = load_iris(as_frame=True).data
    >>> vae = SigmaVAE(2, sigma=0.2, max_iter=5, random_state=0).fit(X)
    >>> ReconstructionDisplay.from_estimator(vae, X).r2.shape
    (4,)
    """

    original: np.ndarray
    restored: np.ndarray
    feature_names: np.ndarray | None = None

    @property
    def error(self):
        """float : Root mean squared error of all entries, in the units of the data."""
        return _common.root_mean_square(self.restored - self.original)

    @property
    def r2(self):
        """ndarray of shape (n_features,) : Share of the variance that is restored.

        It is at most 1, and NaN for constant features. For images it is None.
        """
        if self.original.ndim > 2:
            return None
        centered = self.original - self.original.mean(axis=0)
        spread = np.abs(centered).max(axis=0)
        varies = spread > 1e-6 * np.abs(self.original).max(axis=0)
        # Relative to the spread, since squares of large numbers overflow.
        spread = np.where(varies, spread, np.nan)
        residual = np.square((self.restored - self.original) / spread).sum(axis=0)
        return 1 - residual / np.square(centered / spread).sum(axis=0)

    @classmethod
    @check_params({"n_images": [COUNT]})
    def from_estimator(cls, estimator, X, *, n_images=8, ax=None, **kwargs):
        """Encode and decode data, and draw both.

        Parameters
        ----------
        estimator : SigmaVAE
            Fitted model.
        X : array-like of shape (n_samples, n_features), or images
            Clean data, preferably not used in training.
        n_images : int, default=8
            Number of images, the first ones of `X`. Of a table all rows count.
        ax, **kwargs : matplotlib Axes, dict
            As for :meth:`plot`.

        Returns
        -------
        display : ReconstructionDisplay
            Display with the figure and its data.

        Raises
        ------
        TypeError, ValueError
            If a parameter or `X` is not valid, or `X` is a table of one row or has
            images of other than one channel or three.

        Examples
        --------
        >>> from sklearn.datasets import load_digits
        >>> from sklearn_sigmavae import ReconstructionDisplay, SigmaVAE
        >>> X = load_digits().images
        >>> vae = SigmaVAE(16, sigma=1.5, max_iter=2, random_state=0).fit(X[:1500])
        >>> ReconstructionDisplay.from_estimator(vae, X[1500:]).restored.shape
        (8, 8, 8)
        """
        layout = _common.check_from_estimator(estimator, ax)
        is_table = len(layout.input_shape) == 1
        if not is_table:
            X = _common.first_images(X, n_images, layout, cls.__name__)
        restored = np.asarray(estimator.inverse_transform(estimator.transform(X)))
        original = np.asarray(X, dtype=restored.dtype)
        if is_table and len(original) < 2:
            raise ValueError("The features of one row do not vary. Pass two or more.")
        display = cls(original=original, restored=restored)
        if is_table:
            display.feature_names = getattr(estimator, "feature_names_in_", None)
        else:
            display.original = _common.as_images(original, layout)
            display.restored = _common.as_images(restored, layout)
        return display.plot(ax, **kwargs)

    def plot(self, ax=None, **kwargs):
        """Draw the data and its reconstruction.

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

        Examples
        --------
        >>> import numpy as np
        >>> from sklearn_sigmavae import ReconstructionDisplay
        >>> X = np.array([[1.0, 5.0], [2.0, 3.0], [3.0, 4.0]])
        >>> display = ReconstructionDisplay(original=X, restored=X + [[0.1, 0.0]])
        >>> display.plot().ax_.get_xlabel()
        'Share of the variance that is restored (R²)'
        """
        if self.original.ndim == 2:
            ax = self._plot_table(ax, **kwargs)
        else:
            labels = ["original", f"restored,\nerror {self.error:.3g}"]
            limits = self.original.min(), self.original.max()
            rows = [self.original, self.restored]
            ax = _common.draw_images(ax, rows, labels, limits, **kwargs)
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def _plot_table(self, ax, **kwargs):
        r2 = self.r2
        ax = _common.resolve_axes(ax, 6.4, 1.2 + 0.22 * min(len(r2), MAX_NAMES))
        places = np.arange(len(r2))
        ax.barh(places, r2, **{"color": _common.BLUE, "height": 0.75} | kwargs)
        if len(r2) > MAX_NAMES:
            ax.set_ylabel("feature")
        else:
            names = self.feature_names
            if names is None:
                names = [f"feature {i}" for i in places]
            notes = np.where(np.isnan(r2), " (constant)", "")
            names = [f"{name}{note}" for name, note in zip(names, notes, strict=True)]
            ax.set_yticks(places, names, fontsize="small")
        # The first feature is on top, as in a list.
        ax.set_ylim(len(r2) - 0.4, -0.6)
        ax.set_xlim(max(1.05 * np.nanmin(r2, initial=0.0), LOWEST_R2), 1)
        ax.set_xlabel("Share of the variance that is restored (R²)")
        _common.draw_frame(ax, grid="x")
        return ax
