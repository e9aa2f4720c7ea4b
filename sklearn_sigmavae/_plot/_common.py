"""What the displays share: checks, colors, axes, and images side by side."""

import numpy as np
from scipy.linalg import norm
from sklearn.utils import _safe_indexing, assert_all_finite
from sklearn.utils._optional_dependencies import check_matplotlib_support
from sklearn.utils.validation import check_is_fitted

from .._sigma_vae import SigmaVAE
from .._validation import as_samples

# Okabe and Ito's colors, which color-blind people can distinguish.
BLUE, VERMILION, GREEN = "#0072B2", "#D55E00", "#009E73"
COLORS = (BLUE, "#E69F00", GREEN, VERMILION, "#56B4E9", "#CC79A7", "#000000")


def check_axes(ax):
    """Raise unless matplotlib is installed and `ax` is its Axes or None."""
    check_matplotlib_support("A display")
    from matplotlib.axes import Axes

    if not isinstance(ax, Axes | None):
        raise TypeError(
            "The 'ax' of a display must be one matplotlib Axes, or None for a new "
            f"figure. Got {type(ax).__name__} instead."
        )


def check_from_estimator(estimator, ax):
    """Layout of the samples of a fitted estimator; both arguments are checked."""
    check_axes(ax)
    if not isinstance(estimator, SigmaVAE):
        raise TypeError(
            "The 'estimator' of a display must be a fitted SigmaVAE. Got "
            f"{type(estimator).__name__} instead; pass the best_estimator_ of a "
            "search, or the last step of a pipeline with the data for that step."
        )
    check_is_fitted(estimator)
    return estimator.module_.layout


def has_images(layout):
    """Whether samples are images that matplotlib can draw, in gray or in color."""
    return len(layout.input_shape) == 3 and layout.input_shape[0] in (1, 3)


def check_images(layout, what):
    """Raise unless samples are images that matplotlib can draw."""
    if not has_images(layout):
        n_channels, *is_image = layout.input_shape
        found = f"images with {n_channels}" if is_image else "a table"
        raise ValueError(
            f"{what} draws images with one channel or three, but this SigmaVAE was "
            f"fitted to {found}. Fit such images, or set image_shape."
        )


def first_images(X, n_images, layout, what):
    """The first images of an array-like, as an array without NaN."""
    check_images(layout, what)
    X = as_samples(X)
    X = np.asarray(_safe_indexing(X, np.arange(min(n_images, len(X)))))
    assert_all_finite(X, input_name="X")
    return X


def as_images(samples, layout):
    """Samples as images for matplotlib: (n, H, W) or (n, H, W, C)."""
    n_channels, height, width = layout.input_shape
    if layout.channels_last:
        return samples.reshape(-1, height, width, n_channels)
    images = samples.reshape(-1, n_channels, height, width)
    return images[:, 0] if n_channels == 1 else images.transpose(0, 2, 3, 1)


def root_mean_square(x):
    """Root of the mean square; squares of large numbers do not overflow in BLAS."""
    return float(norm(x.ravel(), check_finite=False) / np.sqrt(x.size))


def resolve_axes(ax, width, height, layout="constrained"):
    """The given axes, or without them those of a new figure of a size in inches."""
    check_axes(ax)
    import matplotlib.pyplot as plt

    return ax or plt.subplots(figsize=(width, height), layout=layout)[1]


def draw_frame(ax, grid="both"):
    """Draw grid lines behind the data, and only the lower and left spine."""
    ax.grid(axis=grid, color="0.9", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def draw_images(ax, rows, labels, limits, **kwargs):
    """Draw rows of images as one picture, with a label to the left of each row.

    Each row has shape (n_images, H, W) or (n_images, H, W, C). The values in `limits`
    are black and white. Returns the axes.
    """
    n_images, height, width = rows[0].shape[:3]
    tile_width = min(0.8, 12 / n_images)
    tile_height = tile_width * height / width
    # Two lines, in points, must fit beside an image, whose height is in inches.
    font_size = np.clip(72 * tile_height / 2.4, 4, 10) if ax is None else None
    # "constrained" leaves too little room for the labels in the first drawing.
    figure_size = tile_width * n_images + 1.6, tile_height * len(rows) + 0.5
    ax = resolve_axes(ax, *figure_size, layout="compressed")
    low, high = limits
    mosaic = np.concatenate([np.concatenate(row, axis=1) for row in rows])
    if mosaic.ndim == 3:
        # matplotlib takes colors from 0 to 1.
        mosaic = ((mosaic - low) / ((high - low) or 1)).clip(0, 1)
    # imshow refuses limits beside a norm.
    shades = {} if "norm" in kwargs else {"vmin": low, "vmax": high}
    ax.imshow(mosaic, **{"cmap": "gray"} | shades | kwargs)
    for i in range(1, n_images):
        ax.axvline(i * width - 0.5, color="0.6", linewidth=0.8)
    for i in range(1, len(rows)):
        ax.axhline(i * height - 0.5, color="0.6", linewidth=0.8)
    ax.set_xticks([])
    ax.set_yticks(tile_centers(len(rows), height), labels, fontsize=font_size)
    ax.tick_params(length=0)
    return ax


def tile_centers(n_tiles, size):
    """Coordinates of the centers of images side by side, in pixels."""
    return size * (np.arange(n_tiles) + 0.5) - 0.5
