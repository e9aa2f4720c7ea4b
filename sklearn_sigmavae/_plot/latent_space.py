"""Picture of codes, and of what the decoder draws along each component."""

from dataclasses import dataclass
from itertools import cycle

import numpy as np
from sklearn.utils import check_consistent_length, column_or_1d
from sklearn.utils._missing import is_pandas_na, is_scalar_nan
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.multiclass import type_of_target

from .._validation import check_params
from . import _common

# There are more classes than colors, so each class has a marker too.
MARKERS = "os^Dv<>P*X"

# More classes cannot be distinguished. Integers with more values are numbers.
MAX_CLASSES = 20

# Columns of a traversal.
STEPS = np.linspace(-3.0, 3.0, 7)

KIND = {"kind": [StrOptions({"scatter", "traversal"})]}


@dataclass(kw_only=True, eq=False, repr=False)
class LatentSpaceDisplay:
    """Picture of the codes of data, or of what the decoder draws.

    ``kind="scatter"`` draws the codes over two components, by default those with the
    most information about the data. ``kind="traversal"``, for models of images, decodes
    codes that are zero except for one component, which goes from -3 to 3 standard
    deviations of the prior. Create a display with :meth:`from_estimator`. Parameters
    are stored as attributes.

    Parameters
    ----------
    codes : ndarray of shape (n_samples, n_components)
        Posterior means.
    components : ndarray of shape (n_shown,)
        Indices of the components to draw, in this order.
    nats : ndarray of shape (n_components,)
        Mean KL divergence of each component, its information about the data, in nats
        per row.
    y : ndarray of shape (n_samples,), default=None
        Classes or numbers to color the codes by.
    traversal : ndarray of shape (n_shown, n_steps, H, W[, C]), default=None
        Decoded images along the components, in the units of the data; None for tables.
    steps : ndarray of shape (n_steps,), default=None
        Values of the component along the traversal.

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes and Figure
        Axes with the picture, and their figure.

    See Also
    --------
    SigmaVAE.transform : Codes.
    SigmaVAE.kl_divergence : Information of each component about each row, in nats.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_sigmavae import LatentSpaceDisplay, SigmaVAE
    >>> X, y = load_iris(return_X_y=True)
    >>> vae = SigmaVAE(3, sigma=0.3, max_iter=5, random_state=0).fit(X)
    >>> LatentSpaceDisplay.from_estimator(vae, X, y).codes.shape
    (150, 3)
    """

    codes: np.ndarray
    components: np.ndarray
    nats: np.ndarray
    y: np.ndarray | None = None
    traversal: np.ndarray | None = None
    steps: np.ndarray | None = None

    @classmethod
    @check_params(KIND | {"components": ["array-like", None]})
    def from_estimator(
        cls, estimator, X, y=None, *, components=None, kind="scatter", ax=None, **kwargs
    ):
        """Encode data, decode along the components, and draw.

        Parameters
        ----------
        estimator : SigmaVAE
            Fitted model.
        X : array-like of shape (n_samples, n_features), or images
            Clean data.
        y : array-like of shape (n_samples,), default=None
            Classes or numbers to color the codes by.
        components : array-like of int of shape (n_shown,), default=None
            Components to draw; by default the eight with the most information about
            `X`.
        kind : {"scatter", "traversal"}, default="scatter"
            As for :meth:`plot`.
        ax, **kwargs : matplotlib Axes, dict
            As for :meth:`plot`.

        Returns
        -------
        display : LatentSpaceDisplay
            Display with the figure and its data.

        Raises
        ------
        TypeError, ValueError
            If a parameter, `X` or `y` is not valid, or the model of a traversal was not
            fitted to images of one channel or three.

        Examples
        --------
        >>> from sklearn.datasets import load_digits
        >>> from sklearn_sigmavae import LatentSpaceDisplay, SigmaVAE
        >>> X = load_digits().images
        >>> vae = SigmaVAE(6, sigma=2.0, max_iter=2, random_state=0).fit(X)
        >>> LatentSpaceDisplay.from_estimator(vae, X, kind="traversal").traversal.shape
        (6, 7, 8, 8)
        """
        layout = _common.check_from_estimator(estimator, ax)
        if kind == "traversal":
            _common.check_images(layout, "kind='traversal'")
        if y is not None:
            y = _check_y(y)
            check_consistent_length(X, y)
        codes, std = estimator.posterior(X)
        # From the standard normal, whatever the prior is: others do not split.
        nats = 0.5 * (codes**2 + std**2 - 1 - 2 * np.log(std)).mean(axis=0)
        if components is None:
            components = np.argsort(-nats, kind="stable")[:8]
        components = _check_components(components, len(nats))
        display = cls(codes=codes, components=components, nats=nats, y=y)
        if _common.has_images(layout):
            display.steps = STEPS
            Z = np.zeros((len(components), len(STEPS), len(nats)))
            Z[np.arange(len(components)), :, components] = STEPS
            images = estimator.inverse_transform(Z.reshape(-1, len(nats)))
            images = _common.as_images(images, layout)
            display.traversal = images.reshape(*Z.shape[:2], *images.shape[1:])
        return display.plot(ax, kind=kind, **kwargs)

    @check_params(KIND)
    def plot(self, ax=None, *, kind="scatter", **kwargs):
        """Draw the codes, or the traversal.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; by default those of a new figure.
        kind : {"scatter", "traversal"}, default="scatter"
            Codes over the first two components, a histogram if there is only one, or a
            row of images for each component.
        **kwargs : dict
            For :meth:`matplotlib.axes.Axes.scatter`,
            :meth:`matplotlib.axes.Axes.imshow` or :meth:`matplotlib.axes.Axes.hist`.

        Returns
        -------
        self : LatentSpaceDisplay
            With the picture in ``ax_`` and ``figure_``.

        Examples
        --------
        >>> import numpy as np
        >>> from sklearn_sigmavae import LatentSpaceDisplay
        >>> codes, nats = np.eye(3), np.array([0.7, 2.5, 0.0])
        >>> display = LatentSpaceDisplay(codes=codes, components=[1, 0], nats=nats)
        >>> display.plot().ax_.get_xlabel()
        'component 1 (2.50 nats)'
        """
        if kind == "traversal":
            ax = self._plot_traversal(ax, **kwargs)
        else:
            ax = _common.resolve_axes(ax, 6.4, 5.0)
            draw = self._plot_scatter if len(self.components) > 1 else self._plot_hist
            draw(ax, **kwargs)
            _common.draw_frame(ax)
            if len(self._groups()) > 1:
                place = {"loc": "center left", "bbox_to_anchor": (1, 0.5)}
                legend = ax.legend(frameon=False, markerscale=1.5, **place)
                for handle in legend.legend_handles:
                    handle.set_alpha(1)
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def _plot_scatter(self, ax, **kwargs):
        from matplotlib.cbook import normalize_kwargs
        from matplotlib.collections import PathCollection

        settings = {"s": 14, "alpha": 0.8, "linewidth": 0.5}
        settings |= normalize_kwargs(kwargs, PathCollection)
        first, second = self.components[:2]
        ax.set(xlabel=self._name(first), ylabel=self._name(second))
        points = self.codes[:, [first, second]].T
        has_colors = "c" in settings or "color" in settings
        if _is_quantity(self.y) and not has_colors:
            colored = ax.scatter(*points, c=self.y, **settings)
            ax.figure.colorbar(colored, ax=ax, label="y")
            return
        for label, rows, color, marker in self._groups():
            style = {"marker": marker}
            for name, value in settings.items():
                is_per_point = np.ndim(value) == 1 and len(value) == len(rows)
                style[name] = np.asarray(value)[rows] if is_per_point else value
            if not has_colors:
                # matplotlib warns if there is nothing to map to colors.
                for name in ("cmap", "norm", "vmin", "vmax"):
                    style.pop(name, None)
                style["c"] = color
            if label is not None:
                style["label"] = label
            ax.scatter(*points[:, rows], **style)

    def _plot_hist(self, ax, **kwargs):
        component = self.components[0]
        for label, rows, color, _ in self._groups():
            style = {"bins": 30, "alpha": 0.6, "color": color, "label": label}
            ax.hist(self.codes[rows, component], **style | kwargs)
        ax.set(xlabel=self._name(component), ylabel="rows")

    def _plot_traversal(self, ax, **kwargs):
        if self.traversal is None:
            raise ValueError("kind='traversal' needs images with one channel or three.")
        labels = [self._name(i).replace(" (", "\n(") for i in self.components]
        # Ignores the few extreme pixels at the ends of the traversal.
        limits = np.quantile(self.traversal, (0.02, 0.98))
        ax = _common.draw_images(ax, self.traversal, labels, limits, **kwargs)
        places = _common.tile_centers(len(self.steps), self.traversal.shape[3])
        ax.set_xticks(places, [f"{step:g}" for step in self.steps])
        ax.set_xlabel("value of the component, standard deviations of the prior")
        return ax

    def _name(self, component):
        return f"component {component} ({self.nats[component]:.2f} nats)"

    def _groups(self):
        """(label, rows, color, marker) of each class; one group if y is not a class."""
        if self.y is None or _is_quantity(self.y):
            return [(None, np.full(len(self.codes), True), _common.BLUE, MARKERS[0])]
        styles = zip(np.unique(self.y), cycle(_common.COLORS), cycle(MARKERS))
        return [(str(each), self.y == each, *style) for each, *style in styles]


def _is_quantity(y):
    """Whether y holds numbers for a color map, rather than classes."""
    if y is None or not np.issubdtype(y.dtype, np.number):
        return False
    return len(np.unique(y)) > MAX_CLASSES or type_of_target(y) == "continuous"


def _check_components(components, n_components):
    """Indices of components as an array."""
    components = np.asarray(components)
    is_integers = components.ndim == 1 and components.dtype.kind in "iu"
    if not (is_integers and set(components) <= set(range(n_components))):
        raise ValueError(
            "The 'components' parameter of LatentSpaceDisplay must be a list of "
            f"integers from 0 to {n_components - 1}. Got {components!r} instead."
        )
    return components


def _check_y(y):
    """Classes or numbers as an array of numbers, booleans or strings."""
    y = column_or_1d(y)
    if any(v is None or is_scalar_nan(v) or is_pandas_na(v) for v in y):
        raise ValueError("The 'y' of a display has missing values. Omit those rows.")
    if y.dtype == object:
        y = np.array(y.tolist())
        y = y.astype(str) if y.dtype == object else y
    n_classes = len(np.unique(y))
    if not np.issubdtype(y.dtype, np.number) and n_classes > MAX_CLASSES:
        raise ValueError(
            f"The 'y' of a display has {n_classes} classes, but at most {MAX_CLASSES} "
            "can be distinguished. Merge some of them, or pass numbers."
        )
    return y
