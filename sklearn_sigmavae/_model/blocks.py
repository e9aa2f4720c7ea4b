"""How many rows at a time: every limit of memory, and inference block by block."""

import math
from contextlib import suppress
from copy import deepcopy

import numpy as np
import torch
from sklearn.utils import assert_all_finite

from .settings import is_out_of_memory, limited_threads, matmul_precision

# All limits are in numbers, not bytes. Pairs are for the CPU, where a block
# stays in cache, and for other devices.

# Rows that are converted to other units.
CONVERTED = 2**17

# The widest array in a block of inference. Narrow layers count as MIN_WIDTH.
INFERRED, MIN_WIDTH = (2**19, 2**24), 2**6

# Training rows that are gathered for many batches at once.
GATHERED = 2**20, 2**24

# The widest array in a batch of evaluation. Narrow layers count as MIN_WIDTH_EVALUATED.
EVALUATED, MIN_WIDTH_EVALUATED = (2**21, 2**25), 2**10

# The same for all members of a stack on the CPU, where small batches cost little.
EVALUATED_IN_STACK = 2**18

# Rows that the start and the largest code are computed from, 10,700 images of 28 x 28;
# for the start at least MIN_ROWS_PER_COMPONENT for each component.
INITIAL, MIN_ROWS_PER_COMPONENT = 2**23, 8

# Rows that a prior is fitted to.
CODES = 10_000

# Principal axes of the networks, but at least one for each component.
AXES = 2**25

# A stack of models on the CPU; larger ones leave the caches and are no faster.
STACKED = 2**24


def limit(numbers, device):
    """The limit of a pair that holds for a device."""
    return numbers[device.type != "cpu"]


def row_blocks(shape):
    """Slices that cut rows (n, n_features) into blocks that stay in cache."""
    step = max(1, CONVERTED // shape[1])
    return (slice(start, start + step) for start in range(0, shape[0], step))


def in_blocks(function, n_rows, vae, dtype, n_points=1):
    """Array of a function's tensors for slices of rows; see :func:`_blocks`."""
    result = None
    with matmul_precision(vae.device):
        for block, output in _blocks(function, n_rows, vae, n_points):
            if result is None:
                result = np.empty((n_rows, *output.shape[1:]), dtype=dtype)
            # Stored while it is in cache.
            torch.from_numpy(result[block]).copy_(output)
    return result


def in_parts(function, vae, n_points, *tensors):
    """Apply a function to blocks of rows of tensors, and concatenate what it returns.

    The function makes ``n_points`` copies of each row.
    """

    def of_block(block):
        return function(*(each[block] for each in tensors))

    blocks = _blocks(of_block, len(tensors[0]), vae, n_points)
    return torch.cat([output for _, output in blocks])


def _blocks(function, n_rows, vae, n_points):
    """Slices of rows and what a function makes of them, smaller where memory is short.

    The function makes ``n_points`` copies of each row.
    """
    device = vae.device
    width = max(MIN_WIDTH, vae.width, vae.units.n_internal) * n_points
    width = max(width, vae.layout.n_features)
    step, start = max(1, limit(INFERRED, device) // width), 0
    n_operations = vae.n_operations * min(step, n_rows) * n_points
    with limited_threads(n_operations, device):
        while start < n_rows:
            block = slice(start, min(start + step, n_rows))
            try:
                output = function(block)
            except RuntimeError as error:
                if step == 1 or not is_out_of_memory(error):
                    raise
                step //= 2
                continue
            yield block, output
            start += step


class _HasGapsError(Exception):
    pass


def infer(vae, function, X):
    """Apply a function of the module and of standardized rows to data.

    Rows with gaps go through the module of features, and others as if there were none.
    """

    def to_tensor(rows):
        x = vae.units.standardize(rows)
        # Block by block, while the rows are in cache.
        if not math.isfinite(x.sum()):
            if x.isnan().any() and np.isnan(rows).any():
                raise _HasGapsError
            _check_finite(rows, x)
        return x

    def to_rows_with_gaps(rows):
        x = vae.units.standardize(rows)
        _check_finite(rows, x)
        return vae.completion.complete(x)

    with suppress(_HasGapsError):
        return _run(vae, function, X, to_tensor)
    has_gaps = np.isnan(X).any(axis=1)
    found = _run(vae.on_features(), function, X[has_gaps], to_rows_with_gaps)
    result = np.empty((len(X), *found.shape[1:]), dtype=found.dtype)
    result[has_gaps] = found
    if not has_gaps.all():
        result[~has_gaps] = _run(vae, function, X[~has_gaps], to_tensor)
    return result


def _check_finite(rows, x):
    """Raise ``ValueError`` unless what is known of rows is finite, standardized too."""
    names = {"estimator_name": "SigmaVAE", "input_name": "X"}
    assert_all_finite(rows, allow_nan=True, **names)
    if x.isinf().any() or (x.isnan().numpy() & ~np.isnan(rows)).any():
        raise ValueError(
            "X has entries too far from the training data to be represented in "
            f"{rows.dtype}; remove them, or pass float64."
        )


def decode(vae, Z):
    """Locations, in internal units, of codes of shape (n_samples, n_components)."""
    # Torch takes neither negative strides nor, without a warning, read-only arrays.
    return _run(
        vae, lambda vae, z: vae.decode(z), Z, lambda z: torch.from_numpy(z.copy("C"))
    )


def in_double(vae, dtype):
    """The module or, for float64 on the CPU, a copy in float64."""
    # Results in float64 do not depend on how rows are batched.
    if dtype == np.float64 and vae.device.type == "cpu" and vae.supports_float64:
        return deepcopy(vae).double()
    return vae


def _run(vae, function, rows, to_tensor):
    # Not in inference mode, whose tensors take no part in gradients.
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        limited_threads(0, vae.device),
    ):
        vae = in_double(vae, rows.dtype)
        dtype = next(vae.parameters()).dtype

        def of_block(block):
            return function(vae, to_tensor(rows[block]).to(vae.device, dtype))

        result_dtype = np.result_type(rows.dtype, np.float32)
        return in_blocks(of_block, len(rows), vae, result_dtype)
