"""What displays share: colours, checks, and images side by side."""

import numpy as np
from sklearn.utils import _safe_indexing, assert_all_finite
from sklearn.utils.validation import check_is_fitted

from .._sigma_vae import SigmaVAE
from .._validation import as_samples

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


def check_axes(ax, owner):
    """Raise unless something is axes to draw on, or None."""
    from matplotlib.axes import Axes

    if not (ax is None or isinstance(ax, Axes)):
        raise TypeError(
            f"The 'ax' of {owner} must be a matplotlib Axes, or None for a new figure. "
            f"Got {type(ax).__name__} instead; of an array of axes, pass one."
        )


def has_images(layout):
    """Whether samples are images that matplotlib can draw, in grey or in colour."""
    return len(layout.input_shape) == 3 and layout.input_shape[0] in (1, 3)


def check_images(estimator, what):
    """Raise unless a model was fitted to images that can be drawn."""
    layout = estimator.module_.layout
    if len(layout.input_shape) == 1:
        raise ValueError(
            f"{what} draws images, but this SigmaVAE was fitted to a table. Fit arrays "
            "of shape (n, H, W), or set image_shape."
        )
    if not has_images(layout):
        raise ValueError(
            f"{what} draws images with one channel or three, but this SigmaVAE was "
            f"fitted to images with {layout.input_shape[0]}. Draw its channels one by "
            "one."
        )


def first_images(X, n_images):
    """The first images of an array-like, as an array without NaN."""
    X = as_samples(X)
    X = np.asarray(_safe_indexing(X, np.arange(min(n_images, len(X)))))
    assert_all_finite(X, input_name="X")
    return X


def as_images(samples, layout):
    """Samples as images for matplotlib: (n, H, W) or (n, H, W, C)."""
    n_channels, height, width = layout.input_shape
    samples = np.asarray(samples)
    if layout.channels_last:
        return samples.reshape(-1, height, width, n_channels)
    images = samples.reshape(-1, n_channels, height, width).transpose(0, 2, 3, 1)
    return images[..., 0] if n_channels == 1 else images


def root_mean_square(x):
    """Root of the mean square, whose squares leave no range of floats."""
    largest = np.abs(x).max(initial=0.0)
    if not 0 < largest < np.inf:
        return float(largest)
    return float(largest * np.sqrt(np.square(x / largest).mean()))


def draw_images(ax, rows, labels, limits, **kwargs):
    """Draw rows of images as one picture, a label to the left of each row.

    Parameters
    ----------
    ax : matplotlib Axes or None
        Where to draw; None for a new figure.
    rows : list of ndarray of shape (n_images, H, W) or (n_images, H, W, C)
        Images, equally many in each row.
    labels : list of str
        Their names, of two lines at most.
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
    font_size = None
    if ax is None:
        tile_width = min(0.8, 12 / n_images)
        tile_height = tile_width * height / width
        size = tile_width * n_images + 1.6, tile_height * len(rows) + 0.5
        # Unlike "constrained", it leaves room for the labels in the first drawing.
        _, ax = plt.subplots(figsize=size, layout="compressed")
        # Two lines, in points, shall fit beside an image, whose height is in inches.
        font_size = np.clip(72 * tile_height / 2.4, 4, 10)
    low, high = limits
    mosaic = np.concatenate([np.concatenate(list(row), axis=1) for row in rows])
    if mosaic.ndim == 3:
        # Colours are drawn from 0 to 1.
        mosaic = ((mosaic - low) / ((high - low) or 1)).clip(0, 1)
    # A norm of the caller's has limits of its own.
    shades = {} if "norm" in kwargs else {"vmin": low, "vmax": high}
    ax.imshow(mosaic, **{"cmap": "gray"} | shades | kwargs)
    lines = {"color": "0.6", "linewidth": 0.8}
    for i in range(1, n_images):
        ax.axvline(i * width - 0.5, **lines)
    for i in range(1, len(rows)):
        ax.axhline(i * height - 0.5, **lines)
    ax.set_xticks([])
    places = height * (np.arange(len(rows)) + 0.5) - 0.5
    ax.set_yticks(places, labels, fontsize=font_size)
    ax.tick_params(length=0)
    return ax
