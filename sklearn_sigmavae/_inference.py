"""Running a trained VAE over arrays, block by block."""

import math
from copy import deepcopy

import numpy as np
import torch
from sklearn.utils import assert_all_finite

# Numbers in the widest array of one block of rows: bounds the memory, and small blocks
# stay in cache.
_BLOCK_SIZE = 2**19

# Assumed width of the widest layer, where the data is narrower.
_WIDTH = 256


def run_in_blocks(vae, function, X, n_points=1):
    """Apply a function of the module and rows to an array.

    Float64 input is computed in float64 where the device is the CPU, so that results
    do not depend on how rows are batched; on accelerators it is computed in float32.

    Parameters
    ----------
    vae : VAE
        The module.
    function : callable
        Takes the module and a tensor (n, *input_shape) in internal units, and returns
        a tensor (n, ...).
    X : ndarray of shape (n_samples, n_features), float32 or float64
        Data. That it is finite is checked here, block by block, since by the time all
        of a large array has been read its beginning has left the cache.
    n_points : int
        How many copies of each row the function makes.

    Returns
    -------
    result : ndarray of shape (n_samples, ...), of the dtype of `X`

    Raises
    ------
    ValueError
        If `X` has NaN or infinite entries, or too large ones for its dtype.
    """

    def to_tensor(rows):
        x = vae.units.to_internal(rows)
        if not math.isfinite(x.sum()):
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


def _run(vae, function, rows, to_tensor, n_points):
    device = vae.device
    dtype = torch.float32
    if rows.dtype == np.float64 and device.type == "cpu":
        dtype = torch.float64
        vae = deepcopy(vae).double()
    width = max(_WIDTH, rows.shape[1], vae.units.offset.size)
    step = max(1, _BLOCK_SIZE // (width * n_points))
    result = None
    with torch.inference_mode():
        for start in range(0, len(rows), step):
            x = to_tensor(rows[start : start + step]).to(device, dtype)
            block = function(vae, x)
            if result is None:
                shape = len(rows), *block.shape[1:]
                result = np.empty(shape, dtype=rows.dtype)
            # Stored while it is in cache.
            torch.from_numpy(result[start : start + step]).copy_(block)
    return result
