"""Running a trained VAE over rows, block by block."""

import math
from contextlib import contextmanager
from copy import deepcopy

import numpy as np
import torch
from sklearn.utils import assert_all_finite

from ._device import is_out_of_memory, matmul_precision
from ._threads import limited_threads
from ._validation import missing_entries_error

# Numbers in the widest array of one block of rows: bounds the memory, and on the CPU
# small blocks stay in cache.
_BLOCK_SIZE_ON_CPU = 2**19
_BLOCK_SIZE_ELSEWHERE = 2**24

# The widest layer counts as at least this wide.
_LEAST_WIDTH = 256


@contextmanager
def in_float32(vae):
    """Context in which a module computes in float32, for data in float64 too.

    It is twice as fast, and as exact as what compares models needs.
    """
    before = vae.takes_float64
    vae.takes_float64 = False
    try:
        yield
    finally:
        vae.takes_float64 = before


def run_in_blocks(vae, function, X, n_points=1):
    """Apply a function of the module and rows to an array.

    Float64 input is computed in float64 where the device is the CPU and the networks
    can, so that results do not depend on how rows are batched; elsewhere in float32.

    Parameters
    ----------
    vae : VAE
        The module.
    function : callable
        Takes the module and a tensor (n, *input_shape) in internal units, and returns
        a tensor (n, ...).
    X : ndarray of shape (n_samples, n_features)
        Data, float32, float64, uint8 or uint16. That it is finite is checked here,
        block by block, since by the time all of a large array has been read its
        beginning has left the cache.
    n_points : int
        How many copies of each row the function makes.

    Returns
    -------
    result : ndarray of shape (n_samples, ...)
        Of the dtype of `X`, or float32 for integers.

    Raises
    ------
    ValueError
        If `X` has NaN or infinite entries, or too large ones for its dtype.
    """

    def to_tensor(rows):
        x = vae.units.to_internal(rows)
        if not math.isfinite(x.sum()):
            if x.isnan().any() and np.isnan(rows).any():
                raise missing_entries_error()
            assert_all_finite(rows, estimator_name="SigmaVAE", input_name="X")
            if not x.isfinite().all():
                raise ValueError(
                    "X has entries too far from the training data to be represented in "
                    f"{X.dtype}; remove them, or pass float64."
                )
        return x

    return _run(vae, function, X, to_tensor, n_points)


def decode_in_blocks(vae, Z):
    """Locations, in internal units, of codes of shape (n_samples, n_components)."""

    def to_tensor(rows):
        # Torch takes neither negative strides nor, without a warning, read-only arrays.
        return torch.from_numpy(np.array(rows, order="C"))

    return _run(vae, lambda vae, z: vae.decode(z), Z, to_tensor, 1)


def in_blocks(function, n_rows, vae, dtype, n_points=1):
    """Apply a function to blocks of rows, smaller ones where memory is short.

    Parameters
    ----------
    function : callable
        From a slice of rows to a tensor (n, ...).
    n_rows : int
        Number of rows.
    vae : VAE
        The module that the function runs.
    dtype : numpy.dtype
        Of the result.
    n_points : int
        How many copies of each row the function makes.

    Returns
    -------
    result : ndarray of shape (n_rows, ...)
    """
    device = vae.device
    width = max(_LEAST_WIDTH, vae.width, vae.layout.n_features)
    size = _BLOCK_SIZE_ON_CPU if device.type == "cpu" else _BLOCK_SIZE_ELSEWHERE
    step = max(1, size // (width * n_points))
    result, start = None, 0
    n_operations = vae.n_operations * min(step, n_rows) * n_points
    with matmul_precision(device), limited_threads(n_operations, device):
        while start < n_rows:
            block = slice(start, min(start + step, n_rows))
            try:
                output = function(block)
            except RuntimeError as error:
                if step == 1 or not is_out_of_memory(error):
                    raise
                step //= 2
                continue
            if result is None:
                result = np.empty((n_rows, *output.shape[1:]), dtype=dtype)
            # Stored while it is in cache.
            torch.from_numpy(result[block]).copy_(output)
            start += step
    return result


def _run(vae, function, rows, to_tensor, n_points):
    device = vae.device
    dtype = torch.float32
    if rows.dtype == np.float64 and device.type == "cpu" and vae.takes_float64:
        dtype = torch.float64
        vae = deepcopy(vae).double()

    def of_block(block):
        return function(vae, to_tensor(rows[block]).to(device, dtype))

    with torch.inference_mode():
        result_dtype = np.result_type(rows.dtype, np.float32)
        return in_blocks(of_block, len(rows), vae, result_dtype, n_points)
