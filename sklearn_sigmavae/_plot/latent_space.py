"""Picture of codes, and of what each component draws."""

import numpy as np
from sklearn.utils import check_consistent_length, column_or_1d
from sklearn.utils._missing import is_pandas_na, is_scalar_nan
from sklearn.utils._optional_dependencies import check_matplotlib_support
from sklearn.utils._param_validation import StrOptions, validate_params
from sklearn.utils.multiclass import type_of_target

from ._common import (
    BLUE,
    COLORS,
    MARKERS,
    as_images,
    check_axes,
    check_images,
    check_model,
    draw_images,
    has_images,
)

# Rows and columns of a traversal.
MAX_ROWS = 8
STEPS = np.linspace(-3.0, 3.0, 7)

# More classes cannot be told apart. More integers than this are numbers.
MAX_CLASSES = 20

_COLOR_MAPS = {"cmap", "norm", "vmin", "vmax"}

_KIND = {"kind": [StrOptions({"scatter", "traversal"})]}


class LatentSpaceDisplay:
    """Picture of the codes of data, or of what the components draw.

    ``kind="scatter"`` draws the codes over two components, by default those that know
    most of the data, coloured by class or by a number. ``kind="traversal"`` draws what
    the decoder makes of codes that are zero but for one component, which goes from -3
    to 3 standard deviations of the prior, for models of images. It is recommended to
    make one with :meth:`from_estimator`; the parameters are kept as attributes, as in
    scikit-learn's displays [1]_.

    Parameters
    ----------
    codes : ndarray of shape (n_samples, n_components)
        Posterior means.
    components : ndarray of shape (n_shown,)
        Indices of the components to draw, the first ones first.
    nats : ndarray of shape (n_components,)
        Mean KL divergence of each component's posterior from the prior, in nats per
        row: what it knows of the data.
    y : ndarray of shape (n_samples,), default=None
        Classes or numbers to colour the codes by.
    traversal : ndarray of shape (n_shown, n_steps, H, W) or \
            (n_shown, n_steps, H, W, C), default=None
        What the decoder draws along the components, in the units of the data; None for
        tables.
    steps : ndarray of shape (n_steps,), default=None
        Values of the component along the traversal.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the picture.
    figure_ : matplotlib Figure
        Figure containing the picture.

    See Also
    --------
    SigmaVAE.transform : Codes.
    SigmaVAE.kl_divergence : What each component knows of each row, in nats.

    References
    ----------
    .. [1] scikit-learn, "Visualizations", in its user guide,
       https://scikit-learn.org/stable/visualizations.html.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_sigmavae import LatentSpaceDisplay, SigmaVAE
    >>> iris = load_iris()
    >>> vae = SigmaVAE(3, sigma=0.3, max_iter=5, random_state=0).fit(iris.data)
    >>> labels = iris.target_names[iris.target]
    >>> display = LatentSpaceDisplay.from_estimator(vae, iris.data, labels)
    >>> display.codes.shape
    (150, 3)
    """

    def __init__(self, *, codes, components, nats, y=None, traversal=None, steps=None):
        self.codes = codes
        self.components = components
        self.nats = nats
        self.y = y
        self.traversal = traversal
        self.steps = steps

    @classmethod
    @validate_params(
        _KIND | {"components": ["array-like", None]},
        prefer_skip_nested_validation=True,
    )
    def from_estimator(
        cls, estimator, X, y=None, *, components=None, kind="scatter", ax=None, **kwargs
    ):
        """Encode data, walk along the components, and draw.

        Parameters
        ----------
        estimator : SigmaVAE
            Fitted model.
        X : array-like of shape (n_samples, n_features), or images
            Clean data.
        y : array-like of shape (n_samples,), default=None
            Classes or numbers to colour the codes by.
        components : array-like of int of shape (n_shown,), default=None
            Which components to draw: two for a scatter, of which more are ignored. By
            default all, up to eight, those that know most of `X` first.
        kind : {"scatter", "traversal"}, default="scatter"
            As for :meth:`plot`.
        ax : matplotlib Axes, default=None
            Axes to draw on; by default those of a new figure.
        **kwargs : dict
            As for :meth:`plot`.

        Returns
        -------
        display : LatentSpaceDisplay
            It holds the figure and its data.

        Raises
        ------
        TypeError
            If the estimator is no SigmaVAE, or `ax` no axes.
        ValueError
            If `X` does not fit the model, `y` does not fit `X` or has missing values
            or too many classes, there is no such component or kind, or the model of a
            traversal was not fitted to images of one channel or three.
        ImportError
            If matplotlib is not installed.

        Examples
        --------
        >>> from sklearn.datasets import load_digits
        >>> from sklearn_sigmavae import LatentSpaceDisplay, SigmaVAE
        >>> X = load_digits().images
        >>> vae = SigmaVAE(6, sigma=2.0, max_iter=2, random_state=0).fit(X)
        >>> display = LatentSpaceDisplay.from_estimator(vae, X, kind="traversal")
        >>> display.traversal.shape  # components, steps, height, width
        (6, 7, 8, 8)
        """
        owner = f"{cls.__name__}.from_estimator"
        check_matplotlib_support(owner)
        check_model(estimator, owner)
        check_axes(ax, owner)
        if kind == "traversal":
            check_images(estimator, f"kind='traversal' of {owner}")
        if y is not None:
            y = _check_y(y, owner)
            check_consistent_length(X, y)
        codes = np.asarray(estimator.transform(X))
        nats = estimator.kl_divergence(X).mean(axis=0)
        components = _check_components(components, nats)
        layout = estimator.module_.layout
        traversal = steps = None
        if has_images(layout):
            steps = STEPS
            Z = np.zeros((len(components), len(steps), codes.shape[1]))
            Z[np.arange(len(components)), :, components] = steps
            images = estimator.inverse_transform(Z.reshape(-1, codes.shape[1]))
            images = as_images(images, layout)
            traversal = images.reshape(*Z.shape[:2], *images.shape[1:])
        display = cls(
            codes=codes,
            components=components,
            nats=nats,
            y=y,
            traversal=traversal,
            steps=steps,
        )
        return display.plot(ax, kind=kind, **kwargs)

    @validate_params(_KIND, prefer_skip_nested_validation=True)
    def plot(self, ax=None, *, kind="scatter", **kwargs):
        """Draw the codes, or what the components draw.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; by default those of a new figure.
        kind : {"scatter", "traversal"}, default="scatter"
            Codes over the first two of the components, or a row of images for each.
            Of a model with one component the scatter is a histogram.
        **kwargs : dict
            For :meth:`matplotlib.axes.Axes.scatter`,
            :meth:`matplotlib.axes.Axes.imshow` or
            :meth:`matplotlib.axes.Axes.hist`.

        Returns
        -------
        self : LatentSpaceDisplay
            With the picture in ``ax_`` and ``figure_``.

        Raises
        ------
        ValueError
            If there is no such kind, or no traversal, since the model is not one of
            images with one channel or three.
        TypeError
            If `ax` is no axes.
        ImportError
            If matplotlib is not installed.

        Examples
        --------
        >>> import numpy as np
        >>> from sklearn_sigmavae import LatentSpaceDisplay
        >>> codes = np.random.default_rng(0).normal(size=(100, 2))
        >>> display = LatentSpaceDisplay(
        ...     codes=codes, components=[1, 0], nats=np.array([0.7, 2.5])
        ... )
        >>> display.plot().ax_.get_xlabel()
        'component 1 (2.50 nats)'
        """
        owner = f"{type(self).__name__}.plot"
        check_matplotlib_support(owner)
        check_axes(ax, owner)
        import matplotlib.pyplot as plt

        if kind == "traversal":
            ax = self._plot_traversal(ax, **kwargs)
        else:
            if ax is None:
                _, ax = plt.subplots(figsize=(6.4, 5.0), layout="constrained")
            draw = self._plot_scatter if len(self.components) > 1 else self._plot_hist
            draw(ax, **kwargs)
            ax.grid(color="0.9", linewidth=0.6)
            ax.set_axisbelow(True)
            ax.spines[["top", "right"]].set_visible(False)
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def _plot_scatter(self, ax, **kwargs):
        from matplotlib.cbook import normalize_kwargs
        from matplotlib.collections import PathCollection

        given = normalize_kwargs(kwargs, PathCollection)
        settings = {"s": 14, "alpha": 0.8, "linewidth": 0.5} | given
        has_colors = bool({"c", "color"} & given.keys())
        first, second = self.components[:2]
        points = self.codes[:, [first, second]].T
        groups = self._groups()
        if groups is not None:
            _scatter_groups(ax, points, groups, settings, has_colors)
        elif has_colors:
            ax.scatter(*points, **settings)
        else:
            colored = ax.scatter(*points, c=self.y, **settings)
            ax.figure.colorbar(colored, ax=ax, label="y")
        ax.set(xlabel=self._name(first), ylabel=self._name(second))

    def _plot_hist(self, ax, **kwargs):
        component = self.components[0]
        settings = {"bins": 30, "alpha": 0.6} | kwargs
        # Numbers cannot be told apart by the colour of a bar.
        groups = self._groups() or _everything(self.codes)
        for color, _, label, rows in groups:
            style = {"color": color, "label": label}
            ax.hist(self.codes[rows, component], **style | settings)
        _add_legend(ax, groups)
        ax.set(xlabel=self._name(component), ylabel="rows")

    def _plot_traversal(self, ax, **kwargs):
        if self.traversal is None:
            raise ValueError(
                "kind='traversal' draws images with one channel or three, but this "
                "model was fitted to a table, or to others. Take kind='scatter'."
            )
        labels = [self._name(i).replace(" (", "\n(") for i in self.components]
        # Without the few pixels that go far at the ends of the walk.
        limits = np.quantile(self.traversal, (0.02, 0.98))
        ax = draw_images(ax, list(self.traversal), labels, limits, **kwargs)
        width = self.traversal.shape[3]
        places = width * (np.arange(len(self.steps)) + 0.5) - 0.5
        ax.set_xticks(places, [f"{step:g}" for step in self.steps])
        ax.set_xlabel("value of the component, standard deviations of the prior")
        return ax

    def _name(self, component):
        return f"component {component} ({self.nats[component]:.2f} nats)"

    def _groups(self):
        """(colour, marker, label, rows) of each class; None if y is no class."""
        if self.y is None:
            return _everything(self.codes)
        classes = np.unique(self.y)
        is_number = np.issubdtype(self.y.dtype, np.number)
        if is_number and (
            type_of_target(self.y) == "continuous" or len(classes) > MAX_CLASSES
        ):
            return None
        return [
            (
                COLORS[i % len(COLORS)],
                MARKERS[i % len(MARKERS)],
                str(label),
                self.y == label,
            )
            for i, label in enumerate(classes)
        ]


def _scatter_groups(ax, points, groups, settings, has_colors):
    """Draw each group in its colour, unless the caller gave colours, and marker."""
    if not has_colors:
        # What maps numbers to colours has none to map.
        settings = {k: v for k, v in settings.items() if k not in _COLOR_MAPS}
    for color, marker, label, rows in groups:
        style = {"marker": marker} | ({} if has_colors else {"color": color})
        for name, value in settings.items():
            # One for each point, or one for all.
            is_each = np.ndim(value) == 1 and len(value) == len(rows)
            style[name] = np.asarray(value)[rows] if is_each else value
        if label is not None:
            style["label"] = label
        ax.scatter(*points[:, rows], **style)
    _add_legend(ax, groups)


def _everything(codes):
    return [(BLUE, MARKERS[0], None, np.full(len(codes), True))]


def _add_legend(ax, groups):
    if len(groups) > 1:
        legend = ax.legend(
            loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, markerscale=1.5
        )
        for handle in legend.legend_handles:
            handle.set_alpha(1)


def _check_components(components, nats):
    """Indices of the components to draw, by default those with the most nats."""
    if components is None:
        return np.argsort(-nats, kind="stable")[:MAX_ROWS]
    components = np.asarray(components)
    is_index = np.issubdtype(components.dtype, np.integer) and components.ndim == 1
    if not (
        is_index
        and len(components)
        and 0 <= components.min() <= components.max() < len(nats)
    ):
        raise ValueError(
            "The 'components' parameter of LatentSpaceDisplay.from_estimator must be a "
            f"list of integers from 0 to {len(nats) - 1}, n_components - 1. Got "
            f"{components!r} instead."
        )
    return components


def _check_y(y, owner):
    """Classes or numbers as an array; numbers and names in arrays of objects too."""
    y = column_or_1d(y)
    if y.dtype == object:
        if any(v is None or is_scalar_nan(v) or is_pandas_na(v) for v in y):
            raise _missing_values(owner)
        y = np.array(y.tolist())
    if y.dtype.kind == "f" and np.isnan(y).any():
        raise _missing_values(owner)
    if y.dtype.kind == "O":
        y = y.astype(str)
    n_classes = len(np.unique(y))
    if not np.issubdtype(y.dtype, np.number) and n_classes > MAX_CLASSES:
        raise ValueError(
            f"The 'y' of {owner} has {n_classes} classes, and no more than "
            f"{MAX_CLASSES} can be told apart. Join some of them, or pass numbers."
        )
    return y


def _missing_values(owner):
    return ValueError(
        f"The 'y' of {owner} has missing values. Leave out those rows, or give them a "
        "class of their own."
    )
