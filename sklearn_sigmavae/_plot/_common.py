"""What displays share: colours, checks, and images side by side."""

import numpy as np
from sklearn.utils.validation import check_is_fitted

from .._sigma_vae import SigmaVAE

# Okabe and Ito's colours, which colour-blind people tell apart.
BLUE, VERMILION, GREEN = "#0072B2", "#D55E00", "#009E73"
COLORS = (BLUE, "#E69F00", GREEN, VERMILION, "#56B4E9", "#CC79A7", "#000000")
# There are more classes than such colours, so each class has a marker too.
MARKERS = "os^Dv<>P*X"


def check_model(estimator, owner):
    """Raise unless an estimator is a fitted :class:`SigmaVAE`."""
    if not isinstance(estimator, SigmaVAE):
        raise TypeError(
            f"The 'estimator' of {owner} must be a fitted SigmaVAE. Got "
            f"{type(estimator).__name__} instead. Of a search, pass its "
            "best_estimator_; of a pipeline its last step, and data as that sees it."
        )
    check_is_fitted(estimator)


def check_images(estimator, what):
    """Raise unless a model was fitted to images."""
    if len(estimator.module_.layout.input_shape) == 1:
        raise ValueError(
            f"{what} draws images, but this SigmaVAE was fitted to a table. Fit arrays "
            "of shape (n, H, W), or set image_shape."
        )


def as_images(samples, layout):
    """Samples as images for matplotlib: (n, H, W) or (n, H, W, C)."""
    n_channels, height, width = layout.input_shape
    if layout.channels_last:
        return samples.reshape(-1, height, width, n_channels)
    images = samples.reshape(-1, n_channels, height, width).transpose(0, 2, 3, 1)
    return images[..., 0] if n_channels == 1 else images


def draw_images(ax, rows, labels, limits, **kwargs):
    """Draw rows of images as one picture, a label to the left of each row.

    Parameters
    ----------
    ax : matplotlib Axes or None
        Where to draw; None for a new figure.
    rows : list of ndarray of shape (n_images, H, W) or (n_images, H, W, C)
        Images, equally many in each row.
    labels : list of str
        Their names.
    limits : tuple of float
        Values that are drawn black and white.
    **kwargs : dict
        For :meth:`matplotlib.axes.Axes.imshow`.

    Returns
    -------
    ax : matplotlib Axes
        Axes with the picture.
    """
    import matplotlib.pyplot as plt

    n_images, height, width = rows[0].shape[:3]
    if ax is None:
        # A width of the picture, not of the tile, so that a few large images fit too.
        tile = min(0.8, 8 / n_images)
        size = tile * n_images + 1.6, tile * len(rows) * height / width + 0.5
        # Unlike "constrained", it leaves room for the labels in the first drawing.
        _, ax = plt.subplots(figsize=size, layout="compressed")
    low, high = limits
    mosaic = np.concatenate([np.concatenate(list(row), axis=1) for row in rows])
    if mosaic.ndim == 3:
        # Colours are drawn from 0 to 1.
        mosaic = ((mosaic - low) / ((high - low) or 1)).clip(0, 1)
    ax.imshow(mosaic, **{"cmap": "gray", "vmin": low, "vmax": high} | kwargs)
    lines = {"color": "0.6", "linewidth": 0.8}
    for i in range(1, n_images):
        ax.axvline(i * width - 0.5, **lines)
    for i in range(1, len(rows)):
        ax.axhline(i * height - 0.5, **lines)
    ax.set_xticks([])
    ax.set_yticks(height * (np.arange(len(rows)) + 0.5) - 0.5, labels)
    ax.tick_params(length=0)
    return ax
