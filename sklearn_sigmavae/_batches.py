"""Rows wherever they lie, and batches of them with the points for the bound.

A loader that fetches row by row costs more than the training step on a small table;
these gather the rows of many batches at once and slice them.
"""

import math

import numpy as np
import torch
from skorch.dataset import Dataset as SkorchDataset
from torch.utils.data import Dataset

from ._device import fits
from ._module import as_tensor, blocks

# Numbers that are gathered from the rows at once. On the CPU: enough to make the cost
# of a call small, few enough to stay in cache and to take no memory worth mentioning.
_GATHERED_ON_CPU = 2**20
_GATHERED_ELSEWHERE = 2**24

# Numbers in the widest layer in an evaluation batch, and the least that it counts as
# having for each row and point.
_EVALUATED_ON_CPU = 2**21
_EVALUATED_ELSEWHERE = 2**25
_LEAST_WIDTH = 2**10

# The same for the evaluation of a stack, where small batches stay in cache and cost
# little, since their price is that of one call for all members.
_EVALUATED_IN_STACK = 2**18


class _Rows:
    """Rows of an array, in float32 and internal units when they are asked for.

    Attributes
    ----------
    shape : tuple of int
        Number of rows and of features.
    device : torch.device
        Where the rows are wanted.
    index_device : torch.device
        Where the tensor that tells which ones must be.
    """

    def __init__(self, X, device, index_device):
        self.shape = X.shape
        self.device = device
        self.index_device = index_device

    def __len__(self):
        return self.shape[0]


class ResidentRows(_Rows):
    """Rows kept on the device, converted."""

    def __init__(self, X, units, device):
        super().__init__(X, device, device)
        self._x = torch.empty(X.shape, dtype=torch.float32, device=device)
        # In blocks, since a conversion goes through several arrays, some in float64.
        for block in blocks(X):
            self._x[block] = units.to_internal(X[block])

    def __getitem__(self, index):
        return self._x[index]


class IntegerRows(_Rows):
    """Rows of unsigned integers kept on the device, converted when they are asked for.

    They take a quarter of the memory of floats, or half of it.
    """

    def __init__(self, X, units, device):
        super().__init__(X, device, device)
        x = as_tensor(X)
        self._dtype = x.dtype
        # Torch does little with unsigned integers of 16 bits, signed ones are as wide.
        width = {1: torch.uint8, 2: torch.int16}[X.itemsize]
        self._x = x.view(width).to(device)
        self._to_internal = units.float32_map(device)

    def __getitem__(self, index):
        return self._to_internal(self._x[index].view(self._dtype).to(torch.float32))


class HostRows(_Rows):
    """Rows left in the user's array, sent to the device when they are asked for."""

    def __init__(self, X, units, device):
        super().__init__(X, device, torch.device("cpu"))
        self._X = X
        self._units = units
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __getitem__(self, index):
        x = self._units.to_internal(self._X[index.numpy()]).to(torch.float32)
        if self._copies is None:
            return x.to(self.device)
        # From pinned memory, and on a stream of its own, the copy runs while the device
        # computes what was asked of it before.
        with torch.cuda.stream(self._copies):
            x = x.pin_memory().to(self.device, non_blocking=True)
        present = torch.cuda.current_stream(self.device)
        present.wait_stream(self._copies)
        x.record_stream(present)
        return x


def place_rows(X, units, device):
    """Keep the rows of an array where training gets at them best.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features)
        float32, float64, uint8 or uint16.
    units : Units
        Map to internal units.
    device : torch.device
        Device to train on.

    Returns
    -------
    rows : ResidentRows, IntegerRows or HostRows
        Indexed with a tensor of integers, it gives a tensor.
    """
    is_integer = X.dtype.kind == "u"
    n_bytes = X.size * (X.itemsize if is_integer else 4)
    if _is_mapped(X) or not fits(n_bytes, device):
        return HostRows(X, units, device)
    if not is_integer:
        return ResidentRows(X, units, device)
    # On the CPU they already are where they should be.
    on_host = device.type == "cpu" or units.float32_map(device) is None
    return (HostRows if on_host else IntegerRows)(X, units, device)


def _is_mapped(X):
    """Whether an array is a view of a file that is mapped into memory."""
    while X is not None:
        if isinstance(X, np.memmap):
            return True
        X = getattr(X, "base", None)
    return False


class Selection(SkorchDataset):
    """Some of the rows, as a dataset for skorch.

    Parameters
    ----------
    rows : ResidentRows, IntegerRows or HostRows
        All rows.
    index : torch.Tensor or None, default=None
        Which of them; None for all.
    """

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

    def training_batches(self, batch_size, n_components, generators):
        """Shuffled batches; see :class:`TrainingBatches`."""
        (generator,) = generators
        return TrainingBatches(self, batch_size, n_components, generator)

    def evaluation_batches(self, vae, n_points):
        """Batches in order; see :class:`EvaluationBatches`."""
        return EvaluationBatches(self, vae, n_points)


class SelectionStack(Dataset):
    """Selections of equal size for the members of a stack, which may share them.

    Parameters
    ----------
    selections : list of Selection
        Distinct selections.
    members : list of int
        For each member, which of them is its.
    """

    def __init__(self, selections, members):
        self.selections = selections
        self.members = torch.tensor(members, device=selections[0].device)

    def __len__(self):
        return len(self.selections[0])

    @property
    def device(self):
        """torch.device : Where batches are."""
        return self.selections[0].device

    def training_batches(self, batch_size, n_components, generators):
        """Shuffled batches, with a generator for each distinct selection."""
        return BatchStacks(
            self,
            [
                TrainingBatches(selection, batch_size, n_components, generator)
                for selection, generator in zip(
                    self.selections, generators, strict=True
                )
            ],
        )

    def evaluation_batches(self, vae, n_points):
        """Batches in order, those of the members cut into smaller ones on the CPU."""
        batches = [
            EvaluationBatches(selection, vae, n_points) for selection in self.selections
        ]
        n_rows = None
        if self.device.type == "cpu":
            n_numbers = 2 * batches[0].n_pairs * len(self.members) * vae.width
            n_rows = max(1, _EVALUATED_IN_STACK // n_numbers)
        return BatchStacks(self, batches, n_rows)


class BatchStacks:
    """The batches of a stack's members, side by side.

    Rows come as (n_members, n, n_features) and points as (n_members, ..., n, k), with
    1 for n_members where all members have the same.

    Parameters
    ----------
    dataset : SelectionStack
        What the batches are of.
    batches : list
        Batches of each of the distinct selections.
    n_rows : int or None
        Most rows in a batch, if batches are to be cut.
    """

    def __init__(self, dataset, batches, n_rows=None):
        self.dataset = dataset
        self.batches = batches
        self.n_rows = n_rows

    def __len__(self):
        return len(self.batches[0])

    @property
    def sizes(self):
        """list of int : Number of rows in each training batch."""
        return self.batches[0].sizes

    def __iter__(self):
        for group in zip(*self.batches, strict=True):
            if len(group) == 1:
                x, eps = (tensor.unsqueeze(0) for tensor in group[0])
            else:
                x, eps = (
                    torch.stack(tensors)[self.dataset.members]
                    for tensors in zip(*group, strict=True)
                )
            if self.n_rows is None:
                yield x, eps
            else:
                yield from zip(
                    x.split(self.n_rows, dim=-2),
                    eps.split(self.n_rows, dim=-2),
                    strict=True,
                )


class TrainingBatches:
    """Shuffled batches, each with one draw from the standard normal for each row.

    Parameters
    ----------
    selection : Selection
        Rows to draw from.
    batch_size : int
        Rows in a batch; the last one may have fewer, or one more.
    n_components : int
        Dimension of the draws.
    generator : torch.Generator
        Source of the order and of the draws, on the device of the rows.

    Attributes
    ----------
    sizes : list of int
        Number of rows in each batch.
    """

    def __init__(self, selection, batch_size, n_components, generator):
        self.dataset = selection
        self.batch_size = batch_size
        self.n_components = n_components
        self.generator = generator
        n_full, rest = divmod(len(selection), batch_size)
        self.sizes = [batch_size] * n_full
        if rest == 1 and n_full:
            # One row alone has no variance, which a batch normalisation needs, and a
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
        step, start = self._n_gathered(), 0
        for i in range(0, len(self.sizes), step):
            sizes = self.sizes[i : i + step]
            gathered = order[start : start + sum(sizes)]
            start += len(gathered)
            shape = len(gathered), self.n_components
            eps = torch.randn(shape, dtype=torch.float32, **random)
            yield from zip(rows[gathered].split(sizes), eps.split(sizes), strict=True)

    def _n_gathered(self):
        """How many batches to gather at once."""
        rows = self.dataset.rows
        on_cpu = rows.device.type == "cpu"
        numbers = _GATHERED_ON_CPU if on_cpu else _GATHERED_ELSEWHERE
        return max(1, numbers // (self.batch_size * rows.shape[1]))


class EvaluationBatches:
    """Batches in order, each with pairs of opposite points for each row.

    The points are the same in every pass, so that passes differ by the weights alone.

    Parameters
    ----------
    selection : Selection
        Rows to evaluate.
    vae : VAE
        The module to evaluate: its dimension is that of the points.
    n_points : int
        About how many points there should be over all rows; each has two at least.
    """

    def __init__(self, selection, vae, n_points):
        self.dataset = selection
        self.n_components = vae.n_components
        self.n_pairs = max(1, n_points // (2 * len(selection)))
        on_cpu = selection.rows.device.type == "cpu"
        numbers = _EVALUATED_ON_CPU if on_cpu else _EVALUATED_ELSEWHERE
        width = max(_LEAST_WIDTH, vae.width)
        self.batch_size = max(1, numbers // (2 * self.n_pairs * width))

    def __len__(self):
        return math.ceil(len(self.dataset) / self.batch_size)

    def __iter__(self):
        rows, device = self.dataset.rows, self.dataset.rows.device
        generator = torch.Generator(device).manual_seed(0)
        for index in self.dataset.index.split(self.batch_size):
            shape = self.n_pairs, len(index), self.n_components
            eps = torch.randn(
                shape, dtype=torch.float32, generator=generator, device=device
            )
            yield rows[index], torch.cat([eps, -eps])
