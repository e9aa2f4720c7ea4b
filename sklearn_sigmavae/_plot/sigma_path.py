"""Picture of a path of noise scales."""

import warnings
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from scipy.stats import sem
from sklearn.utils._optional_dependencies import check_matplotlib_support
from sklearn.utils._param_validation import StrOptions

from .._selection.path import sigma_path
from .._selection.power_law import PowerLaw
from .._validation import check_params
from . import _common

PANELS = ("score", "rate_distortion", "power_law")
KIND = {"kind": [StrOptions({"all", *PANELS})]}

SIGMA_LABEL = "σ, in the units of X"
KL_LABEL = "KL, nats per row"
LINEAR = {"linewidth": 1.2, "label": "Linear model, closed form"}


@dataclass(kw_only=True, eq=False, repr=False)
class SigmaPathDisplay:
    """Picture of a path of noise scales, in three panels.

    They show the score, the rate against the distortion, and the power law of the KL
    divergence. Create a display with :meth:`from_path` or :meth:`from_estimator`.
    Parameters are stored as attributes.

    Parameters
    ----------
    sigmas, score, kl, distortion : ndarray of shape (n_sigmas,)
        Scales of the noise, and results at each, as in :class:`SigmaPath`.
    n_features : int
        Number of features, over which the distortion is a sum.
    test_scores : ndarray of shape (n_sigmas, n_folds), default=None
        Scores of held-out rows in cross-validation, in nats per row.
    linear_kl, linear_distortion : ndarray of shape (n_sigmas,), default=None
        KL divergence and distortion of the linear model.
    exponent : float, default=2.0
        Exponent of the noise model: 2 is for Gaussian noise.
    power_law : PowerLaw, default=None
        Fit to the KL divergence.
    best_sigma : float, default=None
        The scale to mark, in the units of the data.

    Attributes
    ----------
    axes_ : ndarray of matplotlib Axes, of shape (n_panels,)
        The panels.
    ax_, figure_ : matplotlib Axes and Figure
        The first panel, and the figure.

    See Also
    --------
    sigma_path : Fits models along a path.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_sigmavae import SigmaPathDisplay, SigmaVAE
    >>> X, _ = load_iris(return_X_y=True)
    >>> vae = SigmaVAE(2, hidden_layer_sizes=(16,), random_state=0)
    >>> SigmaPathDisplay.from_estimator(vae, X, n_sigmas=8).axes_.shape
    (3,)
    """

    sigmas: np.ndarray
    score: np.ndarray
    kl: np.ndarray
    distortion: np.ndarray
    n_features: int
    test_scores: np.ndarray | None = None
    linear_kl: np.ndarray | None = None
    linear_distortion: np.ndarray | None = None
    exponent: float = 2.0
    power_law: PowerLaw | None = None
    best_sigma: float | None = None

    @classmethod
    def from_path(cls, path, *, ax=None, kind="all", **kwargs):
        """Draw a path.

        Parameters
        ----------
        path : SigmaPath
            Result of :func:`sigma_path`.
        ax, kind, **kwargs : matplotlib Axes or array-like of shape (3,), str, dict
            As for :meth:`plot`.

        Returns
        -------
        display : SigmaPathDisplay
            Display with the figure and its data.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from sklearn_sigmavae import SigmaPathDisplay, SigmaVAE, sigma_path
        >>> X = load_iris().data
        >>> path = sigma_path(X, n_sigmas=4, estimator=SigmaVAE(2), max_iter=1)
        >>> SigmaPathDisplay.from_path(path, kind="score").ax_.get_title()
        'Score'
        """
        model = path.estimators[0]
        arrays = ["sigmas", "score", "kl", "distortion", "test_scores", "linear_kl"]
        display = cls(
            **{name: getattr(path, name) for name in arrays},
            best_sigma=path.best_sigma,
            n_features=model.n_features_in_,
            exponent=float(model.noise_.exponent),
        )
        if display.exponent == 2:  # the closed form is one of squares
            tau = path.noise_variance[:, None]
            explained = np.maximum(path.eigenvalues - tau, 0.0).sum(axis=1)
            display.linear_distortion = path.total_variance - explained
        # The picture has all scales, and the law where it was fitted.
        with suppress(ValueError), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Scales from .* are not fitted")
            display.power_law = path.power_law()
        return display.plot(ax, kind=kind, **kwargs)

    @classmethod
    @check_params(KIND)
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
        """Fit models along a path with :func:`sigma_path`, and draw it.

        Parameters
        ----------
        estimator : SigmaVAE
            Model with the parameters to use.
        X : array-like of shape (n_samples, n_features), or images
            Training data.
        sigmas, n_sigmas, eps, cv, X_val, max_iter : parameters of :func:`sigma_path`
            Scales, held-out rows and number of epochs, as described there.
        ax, kind, **kwargs : matplotlib Axes or array-like of shape (3,), str, dict
            As for :meth:`plot`.

        Returns
        -------
        display : SigmaPathDisplay
            Display with the figure and its data.

        Raises
        ------
        ValueError, TypeError
            If a parameter or the data is not valid.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from sklearn_sigmavae import SigmaPathDisplay, SigmaVAE
        >>> X = load_iris().data
        >>> SigmaPathDisplay.from_estimator(SigmaVAE(2), X, max_iter=1).kl.shape
        (16,)
        """
        # Before the path, which takes a while.
        _check_axes(ax, kind)
        params = {"n_sigmas": n_sigmas, "eps": eps, "estimator": estimator}
        params |= {"cv": cv, "X_val": X_val, "max_iter": max_iter}
        path = sigma_path(X, sigmas, **params)
        return cls.from_path(path, ax=ax, kind=kind, **kwargs)

    @check_params(KIND)
    def plot(self, ax=None, *, kind="all", **kwargs):
        """Draw one panel, or all three.

        Parameters
        ----------
        ax : matplotlib Axes or array-like of shape (n_panels,), default=None
            Axes to draw on, one for each panel; by default those of a new figure.
        kind : {"all", "score", "rate_distortion", "power_law"}, default="all"
            Which panel to draw, or all three.
        **kwargs : dict
            For the lines of the fits to all rows, as for
            :meth:`matplotlib.axes.Axes.plot`.

        Returns
        -------
        self : SigmaPathDisplay
            With the figure in ``figure_`` and the panels in ``axes_``.

        Examples
        --------
        >>> import numpy as np
        >>> from sklearn_sigmavae import SigmaPathDisplay
        >>> a = np.array([2.0, 1.0])
        >>> path = {"sigmas": a, "score": a, "kl": a, "distortion": a, "n_features": 3}
        >>> SigmaPathDisplay(**path).plot(kind="rate_distortion").ax_.get_ylabel()
        'KL, nats per row'
        """
        names, axes = _check_axes(ax, kind)
        import matplotlib.pyplot as plt
        from matplotlib.cbook import normalize_kwargs
        from matplotlib.lines import Line2D

        if axes is None:
            figure = plt.figure(figsize=(4.6 * len(names), 4.0), layout="constrained")
            axes = np.ravel(figure.subplots(1, len(names)))
        line = {"color": _common.BLUE, "marker": "o", "markersize": 4}
        line |= {"label": "Fit to all rows"} | normalize_kwargs(kwargs, Line2D)
        for panel, name in zip(axes, names, strict=True):
            x, y = getattr(self, f"_plot_{name}")(panel, line)
            if self.best_sigma is not None:
                i = np.argmin(np.abs(self.sigmas - self.best_sigma))
                label = f"Best σ by score: {self.best_sigma:.3g}"
                panel.plot(x[i], y[i], "o", color="0.4", mfc="none", ms=11, label=label)
            _common.draw_frame(panel)
            panel.legend(frameon=False, fontsize="small")
        self.axes_, self.ax_, self.figure_ = axes, axes[0], axes[0].figure
        return self

    def _plot_score(self, ax, line):
        ax.plot(self.sigmas, self.score, **line)
        scores, style = self.score, {"color": _common.VERMILION}
        if self.test_scores is not None:
            n_folds = self.test_scores.shape[1]
            scores = self.test_scores.mean(axis=1)
            label = f"Held-out rows, mean of {n_folds} folds"
            if n_folds > 1:
                label += "\n(band: ± standard error)"
                error = sem(self.test_scores, axis=1)
                band = scores - error, scores + error
                ax.fill_between(self.sigmas, *band, alpha=0.25, linewidth=0, **style)
            ax.plot(self.sigmas, scores, "s-", markersize=4, label=label, **style)
        _scale_log(ax, "x", self.sigmas)
        ax.set(title="Score", xlabel=SIGMA_LABEL)
        ax.set_ylabel("Bound on the log-likelihood, nats per row")
        return self.sigmas, scores

    def _plot_rate_distortion(self, ax, line):
        error = self._error_of(self.distortion)
        ax.plot(error, self.kl, **line)
        if self.linear_kl is not None and self.linear_distortion is not None:
            linear_error = self._error_of(self.linear_distortion)
            ax.plot(linear_error, self.linear_kl, "k--", **LINEAR)
        names = {1: "Mean absolute error", 2: "Root mean square error"}
        name = names.get(self.exponent, f"Mean error of exponent {self.exponent:g}")
        ax.set(title="Rate and distortion", ylabel=KL_LABEL)
        ax.set_xlabel(f"{name} of a feature, in the units of X")
        return error, self.kl

    def _plot_power_law(self, ax, line):
        ax.plot(self.sigmas, self.kl, **line)
        if self.linear_kl is not None:
            ax.plot(self.sigmas, self.linear_kl, "k--", **LINEAR)
        law = self.power_law
        if law is not None:
            exponent = f"{law.exponent:.2f} ± {law.exponent_error:.2f}"
            label = f"Power law, σ$^{{-ν}}$: ν = {exponent}, R² = {law.r2:.3f}"
            fitted = law.prefactor * law.sigmas**-law.exponent
            ax.plot(law.sigmas, fitted, color=_common.GREEN, zorder=1.9, label=label)
        _scale_log(ax, "x", self.sigmas)
        _scale_log(ax, "y", self.kl)
        ax.set(title="Power law", xlabel=SIGMA_LABEL, ylabel=KL_LABEL)
        return self.sigmas, self.kl

    def _error_of(self, distortion):
        """Mean error of a feature, in the units of the data."""
        return (distortion / self.n_features) ** (1 / self.exponent)


def _check_axes(ax, kind):
    """Names of the panels of a kind, and as many axes, or None."""
    check_matplotlib_support("SigmaPathDisplay")
    names = PANELS if kind == "all" else (kind,)
    axes = None if ax is None else np.ravel(np.asarray(ax, dtype=object))
    if axes is not None and len(axes) != len(names):
        raise ValueError(
            f"The 'ax' parameter of SigmaPathDisplay must hold {len(names)} axes for "
            f"kind={kind!r}. Got {len(axes)}; to draw a single panel, pass its 'kind'."
        )
    return names, axes


def _scale_log(ax, name, values):
    """Make the axis "x" or "y" logarithmic, with ticks that read as numbers."""
    from matplotlib.ticker import LogLocator

    positive = values[values > 0]
    if not positive.size:
        return
    getattr(ax, f"set_{name}scale")("log", nonpositive="mask")
    lowest = 1e-3 * positive.max()
    if positive.min() < lowest:
        getattr(ax, f"set_{name}lim")(lowest)
        return
    axis = getattr(ax, f"{name}axis")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter("")
