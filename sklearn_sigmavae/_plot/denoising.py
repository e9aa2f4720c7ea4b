"""Picture of images with noise, and of what a model restores."""

from dataclasses import dataclass

import numpy as np
from sklearn.utils import check_array, check_random_state

from .._validation import COUNT, check_params
from ..noise import ANY_NOISE, resolve_noise
from . import _common


@dataclass(kw_only=True, eq=False, repr=False)
class DenoisingDisplay:
    """Picture of images: clean, with noise of several scales, and restored.

    Create one with :meth:`from_estimator`. Parameters are stored as attributes.

    Parameters
    ----------
    clean : ndarray of shape (n_images, H, W) or (n_images, H, W, C)
        Images without noise.
    noisy, restored : ndarray of shape (n_scales, n_images, H, W[, C])
        The images with noise of each scale, and those restored from them.
    noise_scales : ndarray of shape (n_scales,)
        Scales of the noise, in the units of the images.
    errors : ndarray of shape (n_scales,)
        Root mean squared errors of the restored images, in the same units.

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes and Figure
        Axes with the picture, and their figure.

    See Also
    --------
    SigmaVAE.denoise : Clean rows from noisy or incomplete ones.
    ReconstructionDisplay : The same without noise.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn_sigmavae import DenoisingDisplay, SigmaVAE
    >>> X = load_digits().images
    >>> vae = SigmaVAE(16, sigma=2.0, max_iter=5, random_state=0).fit(X[:1500])
    >>> DenoisingDisplay.from_estimator(vae, X[1500:], noise_scales=[4, 8]).noisy.shape
    (2, 8, 8, 8)
    """

    clean: np.ndarray
    noisy: np.ndarray
    restored: np.ndarray
    noise_scales: np.ndarray
    errors: np.ndarray

    @classmethod
    @check_params(
        {
            "noise_scales": ["array-like", None],
            "noise": ANY_NOISE,
            "n_images": [COUNT],
            "random_state": ["random_state"],
        }
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
        """Add noise to images, restore them with a model, and draw all.

        Parameters
        ----------
        estimator : SigmaVAE
            Fitted to images, or to rows with ``image_shape``.
        X : array-like of images
            Clean images, of which the first are drawn.
        noise_scales : array-like of shape (n_scales,), default=None
            Scales of the noise, in the units of `X`. By default 1, 2 and 4 times that
            of the training data.
        noise : {"gaussian", "laplace"} or NoiseModel, default="gaussian"
            Distribution of the noise.
        n_images : int, default=8
            Number of images.
        random_state : int, RandomState instance or None, default=0
            Source of the noise.
        ax, **kwargs : matplotlib Axes, dict
            As for :meth:`plot`.

        Returns
        -------
        display : DenoisingDisplay
            Display with the figure and its data.

        Raises
        ------
        TypeError, ValueError
            If a parameter is not valid, or the model is not one of images with one
            channel or three, or has noise without a scale.

        Examples
        --------
        >>> from sklearn.datasets import load_digits
        >>> from sklearn_sigmavae import DenoisingDisplay, SigmaVAE
        >>> X = load_digits().images
        >>> vae = SigmaVAE(16, sigma=2.0, max_iter=2, random_state=0).fit(X[:1500])
        >>> DenoisingDisplay.from_estimator(vae, X[1500:], n_images=5).restored.shape
        (3, 5, 8, 8)
        """
        layout = _common.check_from_estimator(estimator, ax)
        clean = _common.first_images(X, n_images, layout, cls.__name__)
        clean = clean.astype(np.result_type(clean.dtype, np.float32))
        if not estimator.noise_.has_scale:
            raise ValueError(f"The noise model, {estimator.noise!r}, has no scale.")
        if noise_scales is None:
            noise_scales = np.array([1, 2, 4]) * estimator.module_.units.data_scale
        noise_scales = check_array(
            noise_scales, dtype=np.float64, ensure_2d=False, input_name="noise_scales"
        )
        model, random_state = resolve_noise(noise), check_random_state(random_state)
        noisy, restored, errors = [], [], []
        for scale in noise_scales:
            sample = model.sample(clean, scale, random_state).astype(clean.dtype)
            denoised = estimator.denoise(sample, noise_scale=scale, noise=noise)
            noisy.append(_common.as_images(sample, layout))
            restored.append(_common.as_images(denoised, layout))
            errors.append(_common.root_mean_square(denoised - clean))
        display = cls(
            clean=_common.as_images(clean, layout),
            noisy=np.stack(noisy),
            restored=np.stack(restored),
            noise_scales=noise_scales,
            errors=np.array(errors),
        )
        return display.plot(ax, **kwargs)

    def plot(self, ax=None, **kwargs):
        """Draw the images: the clean ones, then a pair of rows for each scale.

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

        Examples
        --------
        >>> import numpy as np
        >>> from sklearn_sigmavae import DenoisingDisplay
        >>> x = np.eye(8).reshape(2, 4, 8)
        >>> images = {"clean": x, "noisy": [x], "restored": [x]}
        >>> DenoisingDisplay(**images, noise_scales=[1.0], errors=[1.0]).plot().ax_
        <Axes: >
        """
        rows, labels = [self.clean], ["clean"]
        for scale, error, noisy, restored in zip(
            self.noise_scales, self.errors, self.noisy, self.restored, strict=True
        ):
            rows += [noisy, restored]
            labels += [f"noise {scale:.3g}", f"restored,\nerror {error:.3g}"]
        limits = self.clean.min(), self.clean.max()
        ax = _common.draw_images(ax, rows, labels, limits, **kwargs)
        height = self.clean.shape[1]
        for i in range(1, len(rows), 2):  # above each pair
            ax.axhline(i * height - 0.5, color="white", linewidth=3)
        self.ax_, self.figure_ = ax, ax.figure
        return self
