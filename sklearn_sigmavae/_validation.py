"""What arrays, scales, recipes, optimizers and devices must look like."""

import math
import warnings
from collections import Counter
from contextlib import suppress
from numbers import Integral

import numpy as np
import torch
from sklearn.utils.validation import validate_data
from skorch.callbacks import Callback

from ._layout import Layout
from ._net import OPTIMIZERS
from .networks import MLP, Conv, is_count

_STACK = (
    "If they are images, bring them to one size and stack them in one array of shape "
    "(n, H, W) or (n, H, W, C), as np.stack does."
)


def check_rows(estimator, X, layout, name="X", **kwargs):
    """Data as rows of samples of the shape that was fitted.

    Parameters
    ----------
    estimator : SigmaVAE
        What was fitted.
    X : array-like
        The data.
    layout : Layout
        Shape of the samples.
    name : str, default="X"
        What the data is called, for messages.
    **kwargs
        Those of scikit-learn's ``validate_data``.

    Returns
    -------
    X : ndarray of shape (n_samples, n_features)
    """
    X = as_samples(X)
    n_dims = count_dims(X)
    if n_dims > 2 or (n_dims == 2 and len(layout.sample_shape) > 1):
        check_sample_shape(name, np.shape(X)[1:], layout.sample_shape)
    return layout.to_rows(check_samples(estimator, X, name, reset=False, **kwargs))


def check_samples(estimator, X, name="X", **kwargs):
    """Data as an array of a type that is trained on; see :func:`check_rows`."""
    if type(X).__name__ == "LazyFrame":
        raise TypeError(
            f"{name} is a LazyFrame, which has no rows yet. Pass {name}.collect()."
        )
    X = as_samples(X)
    if count_dims(X) > 2:
        # scikit-learn would take the height of an image for its features.
        kwargs |= {"allow_nd": True, "ensure_2d": False}
    dtype = [np.float64, np.float32, np.uint8, np.uint16]
    try:
        return validate_data(estimator, X, dtype=dtype, order="C", **kwargs)
    except ValueError as error:
        text = str(error)
        # scikit-learn recommends classifiers that take NaN, and calls all data X.
        if "contains NaN" in text:
            raise missing_entries_error(name, _FOR_TRAINING) from None
        if text.startswith("Input X contains"):
            raise ValueError(text.replace("X", name, 1)) from None
        raise


_FOR_TRAINING = (
    "SigmaVAE is fitted to complete rows. Fill the gaps before, with SimpleImputer, "
    "KNNImputer or IterativeImputer of sklearn.impute, or leave such rows out. Once "
    "fitted, denoise and posterior take NaN as missing."
)

_FOR_INFERENCE = (
    "The encoder reads complete rows. denoise fills the gaps, and posterior returns "
    "codes of incomplete rows: these two methods take NaN as missing."
)


def missing_entries_error(name="X", way_out=_FOR_INFERENCE):
    """The error for data with NaN where that is not taken."""
    return ValueError(f"Input {name} contains NaN. {way_out}")


def as_samples(X):
    """Samples in one array, or in whatever knows more than an array, as it is.

    Tensors and lists become arrays here, and so keep their type.
    """
    if isinstance(X, torch.Tensor):
        return X.detach().cpu().numpy()
    if isinstance(X, list | tuple):
        try:
            return np.asarray(X)
        # numpy's words for arrays of several shapes do not help.
        except ValueError as error:
            raise ValueError(
                f"X must hold samples of one shape. Got {_shapes_in(X)}. {_STACK}"
            ) from error
    if count_dims(X) == 1 and str(getattr(X, "dtype", None)) == "object":
        shapes = _shapes_in(X)
        if shapes not in ("", "()"):
            raise ValueError(
                "X must be one array of numbers. Got an array of objects, of shapes "
                f"{shapes}. {_STACK}"
            )
    if (
        count_dims(X) == 2
        and hasattr(X, "iloc")
        and any(dtype.kind == "O" for dtype in X.dtypes)
    ):
        # numpy makes no number of pandas' NA, which such columns may hold.
        return X.mask(X.isna(), np.nan)
    return X


def count_dims(X):
    """Number of dimensions of array-like data."""
    return len(X.shape) if hasattr(X, "shape") else np.asarray(X).ndim


def _shapes_in(X):
    """Some of the shapes of items, in words."""
    try:
        return ", ".join(map(str, sorted({np.shape(item) for item in X})[:3]))
    except ValueError:
        return "items of no shape"


def resolve_layout(sample_shape, image_shape, channels_first):
    """Layout of samples of a shape.

    Parameters
    ----------
    sample_shape : tuple of int
        Shape of the array of samples but for its first dimension.
    image_shape : tuple of int or None
        Shape of the images that rows stand for.
    channels_first : bool
        Whether the channels of images come before height and width.

    Raises
    ------
    ValueError
        If the array holds no images, or not those that ``image_shape`` tells.
    """
    if image_shape is not None:
        image_shape = _check_image_shape(image_shape)
        n_features = math.prod(image_shape)
        if sample_shape not in ((n_features,), image_shape):
            got = (
                f"{sample_shape[0]} features"
                if len(sample_shape) == 1
                else f"samples of shape {sample_shape}"
            )
            raise ValueError(
                f"The 'image_shape' parameter of SigmaVAE, {image_shape}, stands for "
                f"rows of {n_features} features or arrays of shape "
                f"(n, {', '.join(map(str, image_shape))}). X has {got}."
            )
    elif len(sample_shape) == 1:
        return Layout(sample_shape, sample_shape)
    else:
        image_shape = sample_shape
    if len(image_shape) > 3 or not all(image_shape):
        raise ValueError(
            "X must have shape (n_samples, n_features), or that of images: (n, H, W), "
            "(n, H, W, C) or, with channels_first=True, (n, C, H, W), and no empty "
            f"dimension. Got samples of shape {image_shape} instead."
        )
    return Layout.of_images(sample_shape, image_shape, channels_first)


def _check_image_shape(image_shape):
    try:
        shape = tuple(image_shape)
        valid = len(shape) in (2, 3) and all(map(is_count, shape))
    except TypeError:
        valid = False
    if not valid:
        raise ValueError(
            "The 'image_shape' parameter of SigmaVAE must be (height, width), or that "
            f"and the channels, integers >= 1. Got {image_shape!r} instead."
        )
    return tuple(map(int, shape))


# Held-out rows count as far away if three quarters of them are this many times as far
# from the mean of the training rows as any of these. Ordinary rows are not, however
# heavy the tails of the data. With fewer rows, of either, nothing is checked.
_FAR = 5
_FEWEST_ROWS = 10
_FEWEST_HELD_OUT = 3

# Of larger data evenly spaced rows with about this many numbers are checked.
_NUMBERS_CHECKED = 2**21


def warn_if_far(X, X_val):
    """Warn if held-out rows seem to be in other units than training rows.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features)
        Training rows, finite.
    X_val : ndarray of shape (n_val_samples, n_features)
        Held-out rows, finite.
    """
    if len(X) < _FEWEST_ROWS or len(X_val) < _FEWEST_HELD_OUT:
        return
    X, X_val = (
        # At least a hundred rows.
        rows[:: max(1, min(rows.size // _NUMBERS_CHECKED, len(rows) // 100))]
        for rows in (X, X_val)
    )
    # Squares of the largest numbers leave float64; then there is no answer.
    with np.errstate(over="ignore", invalid="ignore"):
        mean = X.mean(axis=0, dtype=np.float64)
        farthest = np.linalg.norm(X - mean, axis=1).max()
        distances = np.linalg.norm(X_val - mean, axis=1)
        near = np.quantile(distances, 0.25, method="lower")
        is_far = farthest > 0 and _FAR * farthest < near < np.inf
    if is_far:
        warnings.warn(
            f"X_val lies far outside of X: most of its rows are more than {_FAR} times "
            "as far from the mean of X as any row of X. Is it in other units? A "
            "pipeline applies the steps before SigmaVAE, such as a scaler, to X_val "
            "only on request: with sklearn.set_config(enable_metadata_routing=True), "
            "SigmaVAE().set_fit_request(X_val=True) and "
            "Pipeline(..., transform_input=['X_val']).",
            # Past _check_training_data, _fit, fit and scikit-learn's wrapper of it.
            stacklevel=6,
        )


def check_sample_shape(name, shape, expected):
    """Raise ``ValueError`` unless samples have the shape of those of the fit."""
    if shape != expected:
        raise ValueError(
            f"{name} has samples of shape {shape}, but SigmaVAE is fitted on samples "
            f"of shape {expected}. Bring {name} to shape "
            f"(n, {', '.join(map(str, expected))})."
        )


def in_feature_order(values, names, parameter):
    """Values for features, in the order of the features where they have labels.

    Parameters
    ----------
    values : object
        What a user passes for one value per feature. A Series, and the columns of a
        DataFrame, of pandas or polars, have labels; 0, 1, ... in order are none. A
        DataFrame of one row stands for a Series, which polars does not label.
    names : ndarray of shape (n_features,) or None
        Names of the features, if the data has some. Without them labels that are
        strings, as a scaler before leaves them behind, do not change the order.
    parameter : str
        What the values are, for the message.

    Returns
    -------
    values : object
        An array, or `values` themselves if they have no labels.

    Raises
    ------
    ValueError
        If the labels are not the names of the features.
    """
    n_dims = len(getattr(values, "shape", ()))
    if n_dims == 1 and hasattr(values, "iloc"):
        labels = list(values.index)
    elif n_dims == 2 and hasattr(values, "columns"):
        labels = list(values.columns)
    else:
        return values
    array = np.asarray(values)
    if array.dtype == object:
        # Of nullable types; what is no number is for the caller to refuse.
        with suppress(TypeError, ValueError):
            array = values.to_numpy(dtype=np.float64, na_value=np.nan)
    if n_dims == 2 and len(array) == 1:
        array = array[0]
    numbers = list(range(len(labels)))
    if labels == numbers or (names is not None and list(names) == labels):
        return array
    if names is None:
        if all(isinstance(label, str) for label in labels):
            return array
        raise ValueError(
            f"{parameter} has the labels {str(labels[:5])[1:-1]}, by which it cannot "
            "be matched to X, whose columns have no names that are strings. Pass an "
            "array in the order of the columns, or give them such names."
        )
    place = {label: i for i, label in enumerate(labels)}
    missing, extra = Counter(names) - Counter(labels), Counter(labels) - Counter(names)
    if missing or extra or len(place) < len(labels):
        repeated = Counter(labels) - Counter(list(place))
        found = [
            f"{words} {', '.join(map(repr, list(some)[:5]))}"
            + (f" and {len(some) - 5} more" if len(some) > 5 else "")
            for words, some in (
                ("it lacks", missing),
                ("X does not have", extra - repeated),
                ("it repeats", repeated),
            )
            if some
        ]
        raise ValueError(
            f"{parameter} must have the column names of X as its labels, each once: "
            f"{', and '.join(found)}. Select them, or pass an array in the order of "
            "the columns."
        )
    return array[..., [place[name] for name in names]]


def _check_positive(parameter, scale, names):
    """Raise ``ValueError`` unless scales are positive and finite; name the first."""
    bad = np.argwhere(~(np.isfinite(scale) & (scale > 0)))
    if not len(bad):
        return
    where, index = "", tuple(bad[0].tolist())
    if index:
        # Of one scale per feature the last index is the feature.
        known = names is not None and scale.shape[-1] == len(names)
        place = repr(str(names[index[-1]])) if known else f"{index[-1]}"
        where = f" for feature {place}"
        if len(index) > 1:
            where = f" at index {index}"
        if len(bad) > 1:
            where += f", and {len(bad) - 1} more like it"
    raise ValueError(
        f"{parameter} must be positive and finite. Got {scale[index]:g}{where}."
    )


def check_sigma(sigma, layout, names=None):
    """Noise scales, and how those of the features relate.

    Parameters
    ----------
    sigma : float or array-like of shape (n_features,) or sample_shape
        Scale of the noise in the units of the data.
    layout : Layout
        Shape of the data.
    names : ndarray of shape (n_features,) or None
        Names of the features; see :func:`in_feature_order`.

    Returns
    -------
    sigma : float or ndarray of shape (n_features,)
        The scales, checked.
    relative : ndarray of shape (n_features,)
        Scales divided by their geometric mean.
    """
    sigma = sigma_in_feature_order(sigma, names)
    shapes = (layout.n_features,), layout.sample_shape
    if sigma.ndim and sigma.shape not in shapes:
        raise ValueError(
            "The 'sigma' parameter of SigmaVAE must have one scale per feature, shape "
            f"{' or '.join(map(str, dict.fromkeys(shapes)))} for this X. Got shape "
            f"{sigma.shape} instead."
        )
    _check_positive("The 'sigma' parameter of SigmaVAE", sigma, names)
    if not sigma.ndim:
        return float(sigma), np.ones(layout.n_features)
    sigma = sigma.ravel()
    # Divided by a power of two first, so that one in the units changes no bit.
    mantissa = sigma / 2.0 ** np.floor(np.log2(sigma[0]))
    return sigma, mantissa / np.exp(np.log(mantissa).mean())


def sigma_in_feature_order(sigma, names):
    """Noise scales as a new array; see :func:`in_feature_order`."""
    parameter = "The 'sigma' parameter of SigmaVAE"
    ordered = in_feature_order(sigma, names, parameter)
    try:
        return np.array(ordered, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{parameter} must be a positive number, one per feature, or 'mle'. Got "
            f"{sigma!r} instead."
        ) from error


def check_noise_scale(noise_scale, layout, n_samples, names=None):
    """Noise scales of observations, of shape (1 or n_samples, 1 or n_features).

    Parameters
    ----------
    noise_scale : float or array-like
        Of shape (), (n_features,), (n_samples, 1) or (n_samples, n_features), or with
        the shape of a sample for features.
    layout : Layout
        Shape of the data.
    n_samples : int
        Number of observations.
    names : ndarray of shape (n_features,) or None
        Names of the features; see :func:`in_feature_order`.
    """
    scale = noise_scale
    # A column with one scale for each row has no feature's name.
    if getattr(noise_scale, "shape", None) != (n_samples, 1):
        scale = in_feature_order(noise_scale, names, "'noise_scale'")
    try:
        scale = np.asarray(scale)
        if scale.dtype == bool:
            raise TypeError("booleans are no scales")
        scale = scale.astype(np.float64, casting="same_kind")
    except (TypeError, ValueError) as error:
        raise ValueError(
            "'noise_scale' must be a positive number, an array of them, or 'estimate'. "
            f"Got {noise_scale!r} instead."
        ) from error
    d, shape = layout.n_features, layout.sample_shape
    shapes = {
        (): (1, 1),
        (n_samples, 1): (n_samples, 1),
        (n_samples, *shape): (n_samples, d),
        (n_samples, d): (n_samples, d),
        shape: (1, d),
        (d,): (1, d),
    }
    if scale.shape not in shapes:
        raise ValueError(
            "'noise_scale' must be one number, or have one for each feature, row or "
            f"entry: shape {', '.join(map(str, list(shapes)[1:]))} for these rows. Got "
            f"shape {scale.shape} instead."
        )
    _check_positive("'noise_scale'", scale, names)
    return scale.reshape(shapes[scale.shape])


def resolve_network(network, hidden_layer_sizes, activation):
    """Recipe that a ``network`` parameter stands for."""
    if isinstance(network, type):
        raise TypeError(
            "The 'network' parameter of SigmaVAE must be an instance of a recipe, not "
            f"a class. Got {network.__name__}; did you mean {network.__name__}()?"
        )
    if not isinstance(network, str):
        return network
    if network == "conv":
        return Conv(activation=activation)
    if isinstance(hidden_layer_sizes, Integral):
        hidden_layer_sizes = (hidden_layer_sizes,)
    sizes = tuple(hidden_layer_sizes)
    if not all(isinstance(size, Integral) and size >= 1 for size in sizes):
        raise ValueError(
            "The 'hidden_layer_sizes' parameter of SigmaVAE must hold integers >= 1. "
            f"Got {hidden_layer_sizes!r} instead."
        )
    return MLP(sizes, activation)


def resolve_optimizer(optimizer, device):
    """Optimizer class and keyword arguments that an ``optimizer`` stands for."""
    if not isinstance(optimizer, str):
        if optimizer is torch.optim.LBFGS:
            raise ValueError(
                "The 'optimizer' parameter of SigmaVAE must be of first order. Got "
                "torch.optim.LBFGS, which evaluates the loss many times a step."
            )
        return optimizer, {}
    cls, kwargs = OPTIMIZERS[optimizer]
    fused = device.type in ("cpu", "cuda")
    # For a step in a CUDA graph; plain SGD cannot say so, and runs without.
    can_capture = device.type == "cuda" and cls is not torch.optim.SGD
    return cls, kwargs | {"fused": fused} | (
        {"capturable": True} if can_capture else {}
    )


def resolve_device(device):
    """Device that a ``device`` parameter stands for, tried out.

    Raises
    ------
    ValueError
        If torch does not know the device or cannot compute on it.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        resolved = torch.device(device)
        torch.zeros(1, device=resolved).item()
    # torch raises a different type for each way in which a device is not there.
    except Exception as error:
        raise ValueError(
            "The 'device' parameter of SigmaVAE must be 'auto' or a device that torch "
            f"can use here, such as 'cpu'. Got {device!r} instead: "
            f"{str(error).splitlines()[0]}"
        ) from error
    return resolved


def check_callbacks(callbacks):
    """Raise ``TypeError`` unless all are skorch callbacks, perhaps named."""
    for item in callbacks:
        callback = item[1] if isinstance(item, tuple) and len(item) == 2 else item
        cls = callback if isinstance(callback, type) else type(callback)
        if not issubclass(cls, Callback):
            raise TypeError(
                "The 'callbacks' parameter of SigmaVAE must hold skorch callbacks, or "
                f"pairs of a name and one. Got {item!r} instead."
            )


def check_splits(splits):
    """Pairs of training and test rows, as arrays of indices.

    Raises
    ------
    ValueError
        If there are none, or one leaves too few rows to train on or to score.
    """
    checked = []
    for i, split in enumerate(splits):
        train, test = (
            np.flatnonzero(rows) if np.asarray(rows).dtype == bool else np.asarray(rows)
            for rows in split
        )
        if len(train) < 2 or len(test) < 1:
            raise ValueError(
                f"Split {i} of 'cv' has {len(train)} training and {len(test)} test "
                "rows, but SigmaVAE needs at least 2 to train on and 1 to score. Use "
                "fewer splits, or more data."
            )
        checked.append((train, test))
    if not checked:
        raise ValueError("'cv' makes no splits. Was its iterator used up before?")
    return checked
