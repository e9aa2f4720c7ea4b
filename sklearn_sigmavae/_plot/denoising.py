"""Picture of images with noise, and of what a model makes of them."""

from numbers import Integral

import numpy as np
from sklearn.utils import check_random_state
from sklearn.utils._optional_dependencies import check_matplotlib_support
from sklearn.utils._param_validation import Interval, StrOptions, validate_params

from ..noise import ALIASES, NoiseModel, resolve_noise
from ._common import (
    as_images,
    check_axes,
    check_images,
    check_model,
    draw_images,
    first_images,
    root_mean_square,
)

# Default scales of the noise, in units of the root mean variance of the training data.
DEFAULT_SCALES = (1.0, 2.0, 4.0)


class DenoisingDisplay:
    """Picture of images, clean, with noise of several scales, and restored.

    It is recommended to make one with :meth:`from_estimator`; the parameters are kept
    as attributes, as in scikit-learn's displays [1]_.

    Parameters
    ----------
    clean : ndarray of shape (n_images, H, W) or (n_images, H, W, C)
        Images without noise.
    noisy, restored : ndarray of shape (n_scales, n_images, H, W[, C])
        The same with noise of each scale, and what the model makes of those.
    noise_scales : ndarray of shape (n_scales,)
        Scales of the noise, in the units of the images.
    errors : ndarray of shape (n_scales,)
        Root mean squared errors of the restored images, in their units.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the picture.
    figure_ : matplotlib Figure
        Figure containing the picture.

    See Also
    --------
    SigmaVAE.denoise : Clean rows from noisy or incomplete ones.
    ReconstructionDisplay : The same without noise.

    References
    ----------
    .. [1] scikit-learn, "Visualizations", in its user guide,
       https://scikit-learn.org/stable/visualizations.html.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn_sigmavae import DenoisingDisplay, SigmaVAE
    >>> X = load_digits().images
    >>> vae = SigmaVAE(16, sigma=2.0, max_iter=5, random_state=0).fit(X[:1500])
    >>> display = DenoisingDisplay.from_estimator(vae, X[1500:], noise_scales=[4, 8])
    >>> display.restored.shape
    (2, 8, 8, 8)
    """

    def __init__(self, *, clean, noisy, restored, noise_scales, errors):
        self.clean = clean
        self.noisy = noisy
        self.restored = restored
        self.noise_scales = noise_scales
        self.errors = errors

    @classmethod
    @validate_params(
        {
            "noise": [StrOptions(set(ALIASES)), NoiseModel],
            "n_images": [Interval(Integral, 1, None, closed="left")],
            "random_state": ["random_state"],
        },
        prefer_skip_nested_validation=True,
    )
    def from_estimator(
        cls,
        estimator,
        X,
        *,
        noise_scales=None,
        noise="gaussian",
        n_images=8,
        random_state=0,
        ax=None,
        **kwargs,
    ):
        """Add noise to images, let a model restore them, and draw all.

        Parameters
        ----------
        estimator : SigmaVAE
            Fitted to images, or to rows with ``image_shape``.
        X : array-like of images
            Clean ones, of which the first are taken.
        noise_scales : array-like of shape (n_scales,), default=None
            Scales of the noise, in the units of `X`. By default 1, 2 and 4 times the
            root mean variance of the training data.
        noise : {"gaussian", "laplace"} or NoiseModel, default="gaussian"
            Distribution of the noise.
        n_images : int, default=8
            How many images to take.
        random_state : int, RandomState instance or None, default=0
            Source of the noise.
        ax : matplotlib Axes, default=None
            Axes to draw on; by default those of a new figure.
        **kwargs : dict
            For :meth:`matplotlib.axes.Axes.imshow`.

        Returns
        -------
        display : DenoisingDisplay
            It holds the figure and its data.

        Raises
        ------
        TypeError
            If the estimator is no SigmaVAE, or `ax` no axes.
        ValueError
            If the model was not fitted to images of one channel or three, or has no
            scale, or a parameter is not valid.
        ImportError
            If matplotlib is not installed.

        Examples
        --------
        >>> from sklearn.datasets import load_digits
        >>> from sklearn_sigmavae import DenoisingDisplay, SigmaVAE
        >>> X = load_digits().images
        >>> vae = SigmaVAE(16, sigma=2.0, max_iter=2, random_state=0).fit(X[:1500])
        >>> display = DenoisingDisplay.from_estimator(vae, X[1500:], n_images=5)
        >>> display.noise_scales.shape  # 1, 2 and 4 times the spread of the pixels
        (3,)
        """
        owner = f"{cls.__name__}.from_estimator"
        check_matplotlib_support(owner)
        check_model(estimator, owner)
        check_images(estimator, owner)
        check_axes(ax, owner)
        if not estimator.noise_.has_scale:
            raise ValueError(
                f"{owner} adds noise of a scale, but this SigmaVAE has noise="
                f"{estimator.noise!r}, which has none."
            )
        layout, units = estimator.module_.layout, estimator.module_.units
        model = resolve_noise(noise)
        if noise_scales is None:
            noise_scales = np.multiply(DEFAULT_SCALES, units.scale.mean())
        noise_scales = _check_scales(noise_scales, owner)
        X = first_images(X, n_images)
        X = X.astype(np.result_type(X.dtype, np.float32))
        random_state = check_random_state(random_state)
        noisy = [
            model.sample(X, scale, random_state).astype(X.dtype)
            for scale in noise_scales
        ]
        restored = [
            estimator.denoise(Y, noise_scale=scale, noise=noise)
            for Y, scale in zip(noisy, noise_scales, strict=True)
        ]
        display = cls(
            clean=as_images(X, layout),
            noisy=np.stack([as_images(Y, layout) for Y in noisy]),
            restored=np.stack([as_images(x, layout) for x in restored]),
            noise_scales=noise_scales,
            errors=np.array([root_mean_square(x - X) for x in restored]),
        )
        return display.plot(ax, **kwargs)

    def plot(self, ax=None, **kwargs):
        """Draw the images, a row for each kind.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; by default those of a new figure.
        **kwargs : dict
            For :meth:`matplotlib.axes.Axes.imshow`.

        Returns
        -------
        self : DenoisingDisplay
            With the picture in ``ax_`` and ``figure_``.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        TypeError
            If `ax` is no axes.

        Examples
        --------
        >>> from sklearn.datasets import load_digits
        >>> from sklearn_sigmavae import DenoisingDisplay, SigmaVAE
        >>> X = load_digits().images
        >>> vae = SigmaVAE(16, sigma=2.0, max_iter=2, random_state=0).fit(X[:1500])
        >>> display = DenoisingDisplay.from_estimator(vae, X[1500:], noise_scales=[6])
        >>> display.plot(cmap="gray_r").ax_.get_images()[0].get_cmap().name
        'gray_r'
        """
        owner = f"{type(self).__name__}.plot"
        check_matplotlib_support(owner)
        check_axes(ax, owner)
        rows, labels = [self.clean], ["clean"]
        for scale, error, noisy, restored in zip(
            self.noise_scales, self.errors, self.noisy, self.restored, strict=True
        ):
            rows += [noisy, restored]
            labels += [f"noise {scale:.3g}", f"restored,\nerror {error:.3g}"]
        limits = self.clean.min(), self.clean.max()
        ax = draw_images(ax, rows, labels, limits, **kwargs)
        height = self.clean.shape[1]
        for i in range(1, len(rows), 2):  # a pair for each scale
            ax.axhline(i * height - 0.5, color="white", linewidth=3)
        self.ax_, self.figure_ = ax, ax.figure
        return self


def _check_scales(noise_scales, owner):
    """Scales of the noise as an array of positive numbers."""
    try:
        scales = np.asarray(noise_scales, dtype=np.float64)
    except (TypeError, ValueError):
        scales = np.empty(0)
    if scales.ndim != 1 or not len(scales) or not (scales > 0).all():
        raise ValueError(
            f"The 'noise_scales' of {owner} must be a list of positive numbers. Got "
            f"{noise_scales!r} instead."
        )
    return scales
