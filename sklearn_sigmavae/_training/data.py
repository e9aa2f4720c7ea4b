"""Rows wherever they lie, and batches of them with the points for the ELBO.

A loader that fetches row by row costs more than the training step on a small table;
these gather the rows of many batches at once and slice them.
"""

import math

import numpy as np
import torch
from skorch.dataset import Dataset

from .._model.blocks import EVALUATED, GATHERED, MIN_WIDTH_EVALUATED, limit, row_blocks
from .._model.settings import fits
from .._model.units import as_tensor


class _Rows:
    """Rows of an array; indexed by a tensor they are in float32 and internal units.

    Rows are wanted on ``device``; indices must be on ``index_device``.
    """

    def __init__(self, X, device, index_device):
        self.shape, self.device, self.index_device = X.shape, device, index_device

    def __len__(self):
        return self.shape[0]


class ResidentRows(_Rows):
    """Rows kept on the device, converted."""

    def __init__(self, X, units, device):
        super().__init__(X, device, device)
        self._x = torch.empty(X.shape, dtype=torch.float32, device=device)
        # In blocks, since a conversion goes through several arrays, some in float64.
        for block in row_blocks(X.shape):
            self._x[block] = units.to_internal(X[block])

    def __getitem__(self, index):
        return self._x[index]


class IntegerRows(_Rows):
    """Rows of unsigned integers kept on the device, in less memory than floats."""

    def __init__(self, X, units, device):
        super().__init__(X, device, device)
        x = as_tensor(X)
        self._dtype = x.dtype
        # Torch supports little for 16-bit unsigned integers; signed ones are as wide.
        width = {1: torch.uint8, 2: torch.int16}[X.itemsize]
        self._x = x.view(width).to(device)
        self._to_internal = units.float32_map(device)

    def __getitem__(self, index):
        return self._to_internal(self._x[index].view(self._dtype).to(torch.float32))


class HostRows(_Rows):
    """Rows left in the user's array, sent to the device when they are needed."""

    def __init__(self, X, units, device):
        super().__init__(X, device, torch.device("cpu"))
        self._X, self._units = X, units

    def __getitem__(self, index):
        x = self._units.to_internal(self._X[index.numpy()]).to(torch.float32)
        if self.device.type == "cuda":
            # So that the copy runs while the host prepares what comes next.
            x = x.pin_memory()
        return x.to(self.device, non_blocking=True)


def place_rows(X, units, device):
    """Keep the rows of an array where training on a device reads them fastest."""
    is_integer = X.dtype.kind == "u"
    n_bytes = X.size * (X.itemsize if is_integer else 4)
    if _is_mapped(X) or not fits(n_bytes, device):
        return HostRows(X, units, device)
    if not is_integer:
        return ResidentRows(X, units, device)
    # On the CPU they are already in place.
    on_host = device.type == "cpu" or units.float32_map(device) is None
    return (HostRows if on_host else IntegerRows)(X, units, device)


def _is_mapped(X):
    """Whether an array is a view of a file that is mapped into memory."""
    while X is not None:
        if isinstance(X, np.memmap):
            return True
        X = getattr(X, "base", None)
    return False


class Selection(Dataset):
    """Some of the rows, all by default, as a dataset for skorch."""

    def __init__(self, rows, index=None):
        self.rows = rows
        index = torch.arange(len(rows)) if index is None else index
        self.index = index.to(rows.index_device)

    def __len__(self):
        return len(self.index)

    def __getitem__(self, item):
        x = self.rows[self.index[item]]
        return x, x

    @property
    def X(self):  # noqa: N802, the name that skorch looks for
        """torch.Tensor : All of them, for scoring callbacks that do not cache."""
        return self.rows[self.index]

    # A row is its own target.
    y = X

    @property
    def device(self):
        """torch.device : Where batches are."""
        return self.rows.device

    def some(self):
        """About a thousand evenly chosen rows, to examine a model by."""
        return self.every(len(self) // 1000)

    def every(self, step):
        """Every `step`-th row; all rows for a step below 1."""
        return Selection(self.rows, self.index[:: max(1, step)])

    def split(self, fraction, seed):
        """Random rows to train on, and the rest to hold out; at least one of each."""
        n = len(self)
        n_held_out = min(math.ceil(fraction * n), n - 1)
        order = torch.from_numpy(np.random.RandomState(seed).permutation(n))
        return tuple(
            Selection(self.rows, order[part])
            for part in (slice(n_held_out, None), slice(n_held_out))
        )

    def training_batches(self, batch_size, n_components, generators):
        """Shuffled batches; see :class:`TrainingBatches`."""
        (generator,) = generators
        return TrainingBatches(self, batch_size, n_components, generator)

    def evaluation_batches(self, vae, n_points):
        """Batches in order; see :class:`EvaluationBatches`."""
        return EvaluationBatches(self, vae, n_points)


class TrainingBatches:
    """Shuffled batches, each with one draw from the standard normal for each row.

    The generator, on the device of the rows, is the source of the order and the draws.
    """

    def __init__(self, selection, batch_size, n_components, generator):
        self.dataset = selection
        self.n_components = n_components
        self.generator = generator
        n_full, rest = divmod(len(selection), batch_size)
        self.sizes = [batch_size] * n_full
        if rest == 1 and n_full:
            # One row alone has no variance, which a batch normalization needs, and a
            # step of its own would give it the weight of a whole batch.
            self.sizes[-1] += 1
        elif rest:
            self.sizes.append(rest)

    def __len__(self):
        return len(self.sizes)

    def __iter__(self):
        rows, index = self.dataset.rows, self.dataset.index
        random = {"generator": self.generator, "device": rows.device}
        order = torch.randperm(len(index), **random)
        order = index[order.to(index.device)]
        n_numbers = self.sizes[0] * rows.shape[1]
        step, start = max(1, limit(GATHERED, rows.device) // n_numbers), 0
        for i in range(0, len(self.sizes), step):
            sizes = self.sizes[i : i + step]
            gathered = order[start : start + sum(sizes)]
            start += len(gathered)
            shape = len(gathered), self.n_components
            eps = torch.randn(shape, dtype=torch.float32, **random)
            yield from zip(rows[gathered].split(sizes), eps.split(sizes), strict=True)


class EvaluationBatches:
    """Batches in order, each with pairs of opposite points for each row.

    There are about ``n_points`` over all rows, and at least two for each. They are the
    same in every pass, so that passes differ by the weights alone.
    """

    def __init__(self, selection, vae, n_points=2):
        self.dataset = selection
        self.n_components = vae.n_components
        self.n_pairs = max(1, n_points // (2 * len(selection)))
        width = max(MIN_WIDTH_EVALUATED, vae.width)
        n_numbers = 2 * self.n_pairs * width
        self.batch_size = max(1, limit(EVALUATED, selection.device) // n_numbers)

    def __len__(self):
        return math.ceil(len(self.dataset) / self.batch_size)

    def __iter__(self):
        rows, device = self.dataset.rows, self.dataset.device
        generator = torch.Generator(device).manual_seed(0)
        for index in self.dataset.index.split(self.batch_size):
            shape = self.n_pairs, len(index), self.n_components
            eps = torch.randn(
                shape, dtype=torch.float32, generator=generator, device=device
            )
            yield rows[index], torch.cat([eps, -eps])
