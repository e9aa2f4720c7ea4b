"""Picture of a path of noise scales."""

import numpy as np
from sklearn.utils._optional_dependencies import check_matplotlib_support

from .._path import sigma_path
from ._common import BLUE, GREEN, VERMILION

GREY = "0.4"

# Of an axis in logarithms no more is shown than this below the largest value.
LOG_RANGE = 1e-3


class SigmaPathDisplay:
    """Picture of a path of noise scales, in three panels.

    The score against the scale, the rate against the distortion, and the power law of
    the KL divergence. It is recommended to make one with :meth:`from_path` or
    :meth:`from_estimator`; the parameters are kept as attributes, as in scikit-learn's
    displays [1]_.

    Parameters
    ----------
    sigmas : ndarray of shape (n_sigmas,)
        Scales of the noise, in the units of the data.
    score : ndarray of shape (n_sigmas,)
        Bound of the models that are fitted to all rows, in nats per row.
    kl : ndarray of shape (n_sigmas,)
        KL divergence of the posterior from the prior, in nats per row.
    distortion : ndarray of shape (n_sigmas,)
        Sum over features of the errors' powers with `exponent`, in the units of the
        data to that power.
    n_features : int
        Number of features that it is a sum over.
    test_scores : ndarray of shape (n_sigmas, n_folds), default=None
        Scores of the models of folds, on rows that these have not seen, in nats per
        row.
    linear_kl : ndarray of shape (n_sigmas,), default=None
        KL divergence of the linear model, in nats per row.
    linear_distortion : ndarray of shape (n_sigmas,), default=None
        Distortion of the linear model, in the same units as `distortion`.
    exponent : float, default=2.0
        Exponent of the noise model: 2 is for Gaussian noise.
    power_law : PowerLaw, default=None
        Fit to the KL divergence.
    best_sigma : float, default=None
        The scale to mark, in the units of the data.

    Attributes
    ----------
    figure_ : matplotlib Figure
        Figure with the panels.
    axes_ : ndarray of matplotlib Axes, of shape (n_panels,)
        The panels.
    ax_ : matplotlib Axes
        The first of them.

    See Also
    --------
    sigma_path : Fits models along a path.

    References
    ----------
    .. [1] scikit-learn, "Visualizations", in its user guide,
       https://scikit-learn.org/stable/visualizations.html.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_sigmavae import SigmaPathDisplay, SigmaVAE, sigma_path
    >>> X, _ = load_iris(return_X_y=True)
    >>> vae = SigmaVAE(2, hidden_layer_sizes=(16,), random_state=0)
    >>> path = sigma_path(X, n_sigmas=8, estimator=vae)
    >>> SigmaPathDisplay.from_path(path).axes_.shape
    (3,)
    """

    def __init__(
        self,
        *,
        sigmas,
        score,
        kl,
        distortion,
        n_features,
        test_scores=None,
        linear_kl=None,
        linear_distortion=None,
        exponent=2.0,
        power_law=None,
        best_sigma=None,
    ):
        self.sigmas = sigmas
        self.score = score
        self.kl = kl
        self.distortion = distortion
        self.n_features = n_features
        self.test_scores = test_scores
        self.linear_kl = linear_kl
        self.linear_distortion = linear_distortion
        self.exponent = exponent
        self.power_law = power_law
        self.best_sigma = best_sigma

    @classmethod
    def from_path(cls, path, *, ax=None, kind="all", **kwargs):
        """Draw a path.

        Parameters
        ----------
        path : SigmaPath
            What :func:`sigma_path` returns.
        ax : matplotlib Axes or array-like of shape (3,), default=None
            As for :meth:`plot`.
        kind : {"all", "score", "rate_distortion", "power_law"}, default="all"
            As for :meth:`plot`.
        **kwargs : dict
            As for :meth:`plot`.

        Returns
        -------
        display : SigmaPathDisplay
            It holds the figure and its data.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            If there is no such kind, or it needs another number of axes.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from sklearn_sigmavae import SigmaPathDisplay, SigmaVAE, sigma_path
        >>> X, _ = load_iris(return_X_y=True)
        >>> vae = SigmaVAE(2, hidden_layer_sizes=(16,), random_state=0)
        >>> path = sigma_path(X, n_sigmas=4, estimator=vae, max_iter=1)
        >>> display = SigmaPathDisplay.from_path(path, kind="score")
        >>> display.ax_.get_title()
        'Score'
        """
        check_matplotlib_support(f"{cls.__name__}.from_path")
        model = path.estimators[0]
        exponent = float(model.noise_.exponent)
        try:
            law = path.power_law()
        except ValueError:  # too few scales
            law = None
        display = cls(
            sigmas=path.sigmas,
            score=path.score,
            kl=path.kl,
            distortion=path.distortion,
            n_features=model.n_features_in_,
            test_scores=path.test_scores,
            linear_kl=path.linear_kl,
            # Its closed form is one of squares.
            linear_distortion=_linear_distortion(path) if exponent == 2 else None,
            exponent=exponent,
            power_law=law,
            best_sigma=path.best_sigma,
        )
        return display.plot(ax, kind=kind, **kwargs)

    @classmethod
    def from_estimator(
        cls,
        estimator,
        X,
        *,
        sigmas=None,
        n_sigmas=16,
        eps=1e-2,
        cv=None,
        X_val=None,
        max_iter=5,
        ax=None,
        kind="all",
        **kwargs,
    ):
        """Fit models along a path, and draw it.

        Parameters
        ----------
        estimator : SigmaVAE
            As for :func:`sigma_path`, like all others but the last three.
        X : array-like of shape (n_samples, n_features), or images
            Training data.
        sigmas : array-like of shape (n_sigmas,), default=None
            Scales of the noise, in the units of `X`.
        n_sigmas : int, default=16
            Number of scales, without `sigmas`.
        eps : float, default=1e-2
            Smallest scale, as a fraction of the largest, without `sigmas`.
        cv : int, cross-validation generator or iterable, default=None
            How to split `X` into folds, if scores of held-out rows are wanted.
        X_val : array-like, of samples of the same shape, default=None
            Held-out rows.
        max_iter : int, default=5
            Number of epochs at each scale.
        ax : matplotlib Axes or array-like of shape (3,), default=None
            As for :meth:`plot`.
        kind : {"all", "score", "rate_distortion", "power_law"}, default="all"
            As for :meth:`plot`.
        **kwargs : dict
            As for :meth:`plot`.

        Returns
        -------
        display : SigmaPathDisplay
            It holds the figure and its data.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError, TypeError
            If a parameter or the data is not valid.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from sklearn_sigmavae import SigmaPathDisplay, SigmaVAE
        >>> X, _ = load_iris(return_X_y=True)
        >>> vae = SigmaVAE(2, hidden_layer_sizes=(16,), random_state=0)
        >>> display = SigmaPathDisplay.from_estimator(
        ...     vae, X, sigmas=[1.0, 0.5, 0.25], max_iter=1
        ... )
        >>> display.kl.shape
        (3,)
        """
        check_matplotlib_support(f"{cls.__name__}.from_estimator")
        # A mistake here shall not cost a path.
        _check_axes(ax, _check_kind(kind))
        path = sigma_path(
            X,
            sigmas,
            n_sigmas=n_sigmas,
            eps=eps,
            estimator=estimator,
            cv=cv,
            X_val=X_val,
            max_iter=max_iter,
        )
        return cls.from_path(path, ax=ax, kind=kind, **kwargs)

    def plot(self, ax=None, *, kind="all", **kwargs):
        """Draw it.

        Parameters
        ----------
        ax : matplotlib Axes or array-like of shape (3,), default=None
            Where to draw: one for each panel. By default in a new figure.
        kind : {"all", "score", "rate_distortion", "power_law"}, default="all"
            Which panel to draw, or all three.
        **kwargs : dict
            For the lines of the models that are fitted to all rows, as
            :meth:`matplotlib.axes.Axes.plot` takes it.

        Returns
        -------
        self : SigmaPathDisplay
            With the figure in ``figure_`` and the panels in ``axes_``.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            If there is no such kind, or it needs another number of axes.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from sklearn_sigmavae import SigmaPathDisplay, SigmaVAE, sigma_path
        >>> X, _ = load_iris(return_X_y=True)
        >>> vae = SigmaVAE(2, hidden_layer_sizes=(16,), random_state=0)
        >>> path = sigma_path(X, n_sigmas=4, estimator=vae, max_iter=1)
        >>> display = SigmaPathDisplay.from_path(path)
        >>> display.plot(kind="rate_distortion", color="black").ax_.get_ylabel()
        'KL, nats per row'
        """
        check_matplotlib_support(f"{type(self).__name__}.plot")
        import matplotlib.pyplot as plt
        from matplotlib.cbook import normalize_kwargs
        from matplotlib.lines import Line2D

        names = _check_kind(kind)
        axes = _check_axes(ax, names)
        if axes is None:
            size = 4.6 * len(names), 4.0
            _, axes = plt.subplots(
                1, len(names), figsize=size, squeeze=False, layout="constrained"
            )
            axes = axes[0]
        line = {"color": BLUE, "marker": "o", "markersize": 4}
        line |= normalize_kwargs(kwargs, Line2D)
        for panel, name in zip(axes, names, strict=True):
            getattr(self, f"_plot_{name}")(panel, line)
            panel.grid(color="0.9", linewidth=0.6)
            panel.set_axisbelow(True)
            panel.spines[["top", "right"]].set_visible(False)
            panel.legend(frameon=False, fontsize="small")
        self.axes_, self.ax_, self.figure_ = axes, axes[0], axes[0].figure
        return self

    def _plot_score(self, ax, line):
        ax.plot(self.sigmas, self.score, **{"label": "Fit to all rows", **line})
        best_among = self.score
        if self.test_scores is not None:
            n_folds = self.test_scores.shape[1]
            mean = best_among = self.test_scores.mean(axis=1)
            label = f"Held-out rows, mean of {n_folds} folds"
            if n_folds > 1:
                label += "\n(band: ± standard error)"
                error = self.test_scores.std(axis=1, ddof=1) / np.sqrt(n_folds)
                ax.fill_between(
                    self.sigmas,
                    mean - error,
                    mean + error,
                    color=VERMILION,
                    alpha=0.25,
                    linewidth=0,
                )
            ax.plot(self.sigmas, mean, "s-", color=VERMILION, markersize=4, label=label)
        if self.best_sigma is not None:
            self._mark_best(ax, self.sigmas, best_among)
        _logarithmic(ax.xaxis, self.sigmas)
        ax.set(
            title="Score",
            xlabel="σ, in the units of X",
            ylabel="Bound on the log-likelihood, nats per row",
        )

    def _plot_rate_distortion(self, ax, line):
        error = self._error_of(self.distortion)
        ax.plot(error, self.kl, **{"label": "Fit to all rows", **line})
        if self.linear_kl is not None and self.linear_distortion is not None:
            linear_error = self._error_of(self.linear_distortion)
            self._plot_linear(ax, linear_error, self.linear_kl)
        if self.best_sigma is not None:
            self._mark_best(ax, error, self.kl)
        names = {1: "Mean absolute error", 2: "Root mean square error"}
        name = names.get(self.exponent, f"Mean error of exponent {self.exponent:g}")
        ax.set(
            title="Rate and distortion",
            xlabel=f"{name} of a feature, in the units of X",
            ylabel="KL, nats per row",
        )

    def _plot_power_law(self, ax, line):
        kl = _positive(self.kl)
        ax.plot(self.sigmas, kl, **{"label": "Fit to all rows", **line})
        if self.linear_kl is not None:
            self._plot_linear(ax, self.sigmas, _positive(self.linear_kl))
        law = self.power_law
        if law is not None:
            label = (
                f"Power law, σ$^{{-ν}}$: ν = {law.exponent:.2f} ± "
                f"{law.exponent_error:.2f}, R² = {law.r2:.3f}"
            )
            fitted = law.prefactor * law.sigmas**-law.exponent
            ax.plot(law.sigmas, fitted, color=GREEN, zorder=1.9, label=label)
        if self.best_sigma is not None:
            self._mark_best(ax, self.sigmas, kl)
        _logarithmic(ax.xaxis, self.sigmas)
        _logarithmic(ax.yaxis, self.kl)
        ax.set(
            title="Power law", xlabel="σ, in the units of X", ylabel="KL, nats per row"
        )

    def _error_of(self, distortion):
        """Mean error of a feature, in the units of the data."""
        return (distortion / self.n_features) ** (1 / self.exponent)

    def _plot_linear(self, ax, x, y):
        label = "Linear model, closed form"
        ax.plot(x, y, color="black", linestyle="--", linewidth=1.2, label=label)

    def _mark_best(self, ax, x, y):
        best = np.argmin(np.abs(self.sigmas - self.best_sigma))
        ax.plot(
            x[best],
            y[best],
            "o",
            color=GREY,
            markerfacecolor="none",
            markersize=11,
            label=f"Best σ by score: {self.best_sigma:.3g}",
        )


def _linear_distortion(path):
    """Of the optimum: tau for each component in use, the variance of all else."""
    tau = path.noise_variance[:, None]
    explained = np.maximum(path.eigenvalues - tau, 0.0)
    return path.total_variance - explained.sum(axis=1)


def _positive(kl):
    """What has a logarithm, and NaN for all else."""
    return np.where(kl > 0, kl, np.nan)


def _check_kind(kind):
    """Names of the panels that a ``kind`` stands for."""
    names = ["score", "rate_distortion", "power_law"]
    if kind == "all":
        return names
    if kind not in names:
        raise ValueError(
            "The 'kind' parameter of SigmaPathDisplay.plot must be 'all', 'score', "
            f"'rate_distortion' or 'power_law'. Got {kind!r} instead."
        )
    return [kind]


def _check_axes(ax, names):
    """Array of one axes for each panel, or None."""
    if ax is None:
        return None
    axes = np.ravel(np.asarray(ax, dtype=object))
    if len(axes) != len(names):
        raise ValueError(
            f"The 'ax' parameter of SigmaPathDisplay.plot must hold {len(names)} axes "
            f"for the panels {names}. Got {len(axes)}; a single panel has a 'kind'."
        )
    return axes


def _logarithmic(axis, values):
    """Give an axis logarithms, with ticks that read as numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    ax, name = axis.axes, axis.axis_name
    positive = values[values > 0]
    if not positive.size:
        return
    ax.set(**{f"{name}scale": "log"})
    largest, least = positive.max(), positive.min()
    if least < LOG_RANGE * largest:
        ax.set(**{f"{name}lim": (LOG_RANGE * largest, None)})
    elif largest < 1000 * least:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axis.set_minor_formatter(NullFormatter())
