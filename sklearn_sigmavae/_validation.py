"""What arrays, scales and recipes must look like."""

import math
import re
import warnings
from collections import Counter
from contextlib import suppress
from functools import partial
from numbers import Integral, Real
from reprlib import repr as short

import numpy as np
import torch
from sklearn.utils._param_validation import Interval, validate_params
from sklearn.utils.validation import validate_data

from ._model.layout import Layout
from .networks import is_count

# Constraints of parameters, and the decorator that checks them.
COUNT = Interval(Integral, 1, None, closed="left")
COUNT_OR_ZERO = Interval(Integral, 0, None, closed="left")
FRACTION = Interval(Real, 0, 1, closed="neither")
POSITIVE = Interval(Real, 0, None, closed="neither")
check_params = partial(validate_params, prefer_skip_nested_validation=True)

# Types that data keeps; it becomes float64 otherwise.
DTYPES = [np.float64, np.float32, np.uint8, np.uint16]


def check_rows(estimator, X, layout, name="X", **kwargs):
    """Data as rows of samples of the shape that was fitted; see `check_samples`."""
    X = as_samples(X)
    shape, expected = shape_of(X)[1:], layout.sample_shape
    # Of tables scikit-learn compares the numbers of features.
    if shape and max(len(shape), len(expected)) > 1 and shape != expected:
        raise ValueError(
            f"{name} has samples of shape {shape}, but SigmaVAE is fitted on samples "
            f"of shape {expected}. Bring {name} to shape (n, {str(expected)[1:]}."
        )
    return layout.to_rows(check_samples(estimator, X, name, reset=False, **kwargs))


def check_samples(estimator, X, name="X", **kwargs):
    """Data as an array of a type that is trained on, by ``validate_data``."""
    if type(X).__name__ == "LazyFrame":
        raise TypeError(
            f"{name} is a LazyFrame, which has no rows yet. Pass {name}.collect()."
        )
    X = as_samples(X)
    if len(shape_of(X)) > 2:
        # scikit-learn would take the height of an image for its features.
        kwargs |= {"allow_nd": True, "ensure_2d": False}
    try:
        return validate_data(estimator, X, dtype=DTYPES, order="C", **kwargs)
    except ValueError as error:
        # scikit-learn calls all data X.
        message = re.sub("^(Input )?X ", rf"\g<1>{name} ", str(error))
        raise ValueError(message) from None


def check_support(noise, X):
    """Raise ``ValueError`` unless the known entries are in the support of a noise."""
    known = ~np.isnan(X) if X.dtype.kind == "f" else None
    if known is not None and not known.all():
        X = X[known]
    if X.size:
        noise.check_data(X)


def find_gaps(X, names, must_be_known):
    """Whether rows have NaN; ``ValueError`` if a column has nothing else."""
    if X.dtype.kind != "f" or not np.isnan(X.min()):
        return False
    if not must_be_known and np.isnan(np.fmin.reduce(X, axis=None)):
        raise ValueError("X or X_val has no entries: all are missing.")
    if must_be_known and np.isnan(columns := np.fmin.reduce(X, axis=0)).any():
        column = int(np.isnan(columns).argmax())
        name = column if names is None else repr(names[column])
        raise ValueError(
            f"Column {name} of X has no entries: all are missing. Drop it, or use "
            "SigmaVAEImputer, which does."
        )
    return True


def shape_of(X):
    """Shape of array-like data, which functions of numpy need not take."""
    return X.shape if hasattr(X, "shape") else np.asarray(X).shape


def as_samples(X):
    """Samples as they are, except that tensors and lists become arrays."""
    if isinstance(X, torch.Tensor):
        return X.detach().cpu().numpy()
    if isinstance(X, np.ma.MaskedArray):
        # scikit-learn would take what is under the mask.
        return X.astype(np.result_type(X.dtype, np.float32)).filled(np.nan)
    is_ragged = isinstance(X, list | tuple)
    if is_ragged:
        with suppress(ValueError):
            return np.asarray(X)
    n_dims = len(getattr(X, "shape", ()))
    if n_dims == 1 and str(getattr(X, "dtype", None)) == "object":
        is_ragged = not all(map(np.isscalar, X))
    if is_ragged:
        raise ValueError(
            "X must be one array of numbers, of samples of one shape. Got an array of "
            "objects. Bring images to one size and stack them, as np.stack does."
        )
    is_frame = n_dims == 2 and hasattr(X, "iloc")
    if is_frame and any(dtype.kind == "O" for dtype in X.dtypes):
        # numpy cannot convert pandas' NA, which such columns may hold, to a number.
        return X.mask(X.isna(), np.nan)
    return X


def resolve_layout(sample_shape, image_shape, channels_first):
    """Layout of samples of a shape, which may be rows that stand for images."""
    shape = sample_shape
    if image_shape is not None:
        shape = tuple(image_shape) if np.iterable(image_shape) else ()
        if len(shape) not in (2, 3) or not all(map(is_count, shape)):
            raise ValueError(
                "The 'image_shape' parameter of SigmaVAE must be (height, width), or "
                f"that and the channels, integers >= 1. Got {image_shape!r} instead."
            )
        shape = tuple(map(int, shape))
        if sample_shape not in ((math.prod(shape),), shape):
            raise ValueError(
                f"The 'image_shape' parameter of SigmaVAE, {shape}, does not match X, "
                f"which has samples of shape {sample_shape}."
            )
    if len(shape) > 3 or not all(shape):
        raise ValueError(
            "X must have shape (n_samples, n_features), or that of images: (n, H, W), "
            "(n, H, W, C) or, with channels_first=True, (n, C, H, W). Got samples of "
            f"shape {shape} instead."
        )
    if len(shape) == 2:
        return Layout(sample_shape, (1, *shape))
    if len(shape) == 1 or channels_first:
        return Layout(sample_shape, shape)
    height, width, n_channels = shape
    # With one channel the two orders are the same.
    return Layout(sample_shape, (n_channels, height, width), n_channels > 1)


# Held-out rows are far away if three quarters of them are this many times as far from
# the mean of the training rows as any of these, and there are not too few of either.
_FAR, _MIN_ROWS, _MIN_HELD_OUT = 5, 10, 3

# Of larger data evenly spaced rows with about this many numbers are checked.
_NUMBERS_CHECKED = 2**21


def warn_if_far(X, X_val):
    """Warn if held-out rows seem to be in other units than training rows."""
    if len(X) < _MIN_ROWS or len(X_val) < _MIN_HELD_OUT:
        return
    X, X_val = (
        # At least a hundred rows.
        rows[:: max(1, min(rows.size // _NUMBERS_CHECKED, len(rows) // 100))]
        for rows in (X, X_val)
    )
    # Squares of the largest numbers leave float64; then there is no answer.
    with np.errstate(over="ignore", invalid="ignore"):
        mean = X.mean(axis=0, dtype=np.float64)
        if np.isnan(mean).any():
            mean = np.nanmean(X, axis=0, dtype=np.float64)
        farthest, distances = (
            np.linalg.norm(np.nan_to_num(rows - mean), axis=1) for rows in (X, X_val)
        )
        farthest = farthest.max()
        near = np.quantile(distances, 0.25, method="lower")
        is_far = farthest > 0 and _FAR * farthest < near < np.inf
    if is_far:
        warnings.warn(
            f"X_val lies far outside of X: most of its rows are more than {_FAR} times "
            "as far from its mean as any row of X. Is it in other units? A pipeline "
            "scales X_val with sklearn.set_config(enable_metadata_routing=True), "
            "SigmaVAE().set_fit_request(X_val=True) and transform_input=['X_val'].",
            # Past _check_samples, _fit, fit and scikit-learn's wrapper of it.
            stacklevel=6,
        )


def in_feature_order(values, names, parameter):
    """Values in the order of the features, by their labels if they have some.

    A Series and the columns of a DataFrame have labels, which must be `names`, if these
    are not None, or 0, 1, ... A DataFrame of one row stands for a Series.
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
        # Of nullable types; what is not a number is for the caller to refuse.
        with suppress(TypeError, ValueError):
            array = values.to_numpy(dtype=np.float64, na_value=np.nan)
    if n_dims == 2 and len(array) == 1:
        array = array[0]
    names = None if names is None else list(names)
    if labels in (list(range(len(labels))), names):
        return array
    if names is None:
        if all(isinstance(label, str) for label in labels):
            return array
        raise ValueError(
            f"{parameter} has the labels {str(labels[:5])[1:-1]}, by which it cannot "
            "be matched to X, whose columns have no names that are strings. Pass an "
            "array in the order of the columns, or give them such names."
        )
    lacking = list(Counter(names) - Counter(labels))
    surplus = list(Counter(labels) - Counter(set(names)))
    if lacking or surplus:
        raise ValueError(
            f"{parameter} must have the column names of X as its labels, each once. It "
            f"lacks {short(lacking)}; unknown or repeated are {short(surplus)}. Or "
            "pass an array in the order of the columns."
        )
    place = {label: i for i, label in enumerate(labels)}
    return array[..., [place[name] for name in names]]


def as_scales(values, names, parameter):
    """Scales as a new array of float64, in the order of the features."""
    ordered = in_feature_order(values, names, parameter)
    try:
        scales = np.asarray(ordered)
        if scales.dtype.kind not in "fiuO" or not scales.size:
            raise TypeError(f"{scales.dtype} is not a type of scales")
        return np.array(scales, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{parameter} must be a positive number or an array of them. Got "
            f"{values!r} instead."
        ) from error


def check_scales(values, shapes, names, parameter):
    """Scales, see `as_scales`, that are positive and have one of `shapes`, if given."""
    scales = as_scales(values, names, parameter)
    if shapes and scales.shape not in shapes:
        raise ValueError(
            f"{parameter} must have shape {' or '.join(map(str, shapes))} for this X. "
            f"Got shape {scales.shape} instead."
        )
    bad = np.argwhere(~(np.isfinite(scales) & (scales > 0))).tolist()
    if bad:
        index = tuple(bad[0])
        where = f" at index {index}" if index else ""
        if names is not None and scales.ndim == 1:
            where = f" for feature {str(names[index[0]])!r}"
        raise ValueError(
            f"{parameter} must be positive and finite. Got {scales[index]:g}{where}."
        )
    return scales


def check_sigma(sigma, layout, names):
    """Scales of the noise, a float or one for each feature, and relative ones."""
    shapes = dict.fromkeys([(), (layout.n_features,), layout.sample_shape])
    sigma = check_scales(sigma, shapes, names, "The 'sigma' parameter of SigmaVAE")
    if not sigma.ndim:
        return float(sigma), np.ones(layout.n_features)
    sigma = sigma.ravel()
    # By the geometric mean; first by a power of two, which changes no bit of the units.
    mantissa = sigma / 2.0 ** np.floor(np.log2(sigma[0]))
    return sigma, mantissa / np.exp(np.log(mantissa).mean())


def check_noise_scale(noise_scale, layout, n_samples, names):
    """Scales of the noise of rows, of shape (1 or n_samples, 1 or n_features)."""
    # The label of a column with one scale for each row is not a feature's.
    if getattr(noise_scale, "shape", None) == (n_samples, 1):
        noise_scale = np.asarray(noise_scale)
    n_features, shape = layout.n_features, layout.sample_shape
    shapes = {
        (): (1, 1),
        (n_samples, 1): (n_samples, 1),
        (n_samples, *shape): (n_samples, n_features),
        (n_samples, n_features): (n_samples, n_features),
        shape: (1, n_features),
        (n_features,): (1, n_features),
    }
    scales = check_scales(noise_scale, shapes, names, "'noise_scale'")
    return scales.reshape(shapes[scales.shape])


def check_splits(splits):
    """Pairs of training and test rows, as arrays of indices."""
    checked = []
    for i, split in enumerate(splits):
        train, test = (
            np.flatnonzero(rows) if np.asarray(rows).dtype == bool else np.asarray(rows)
            for rows in split
        )
        if len(train) < 2 or len(test) < 1:
            raise ValueError(
                f"Split {i} of 'cv' has {len(train)} training and {len(test)} test "
                "rows. Make fewer splits, with at least 2 to train on and 1 to score."
            )
        checked.append((train, test))
    if not checked:
        raise ValueError("'cv' makes no splits. Has its iterator been exhausted?")
    return checked
