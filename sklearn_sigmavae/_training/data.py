"""Rows wherever they lie, and batches of them with the points for the ELBO.

A loader that fetches row by row costs more than the training step on a small table;
these gather the rows of many batches at once and slice them.
"""

import math
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from skorch.dataset import Dataset

from .._model.blocks import (
    CONVERTED,
    EVALUATED,
    GATHERED,
    MIN_WIDTH_EVALUATED,
    limit,
    row_blocks,
)
from .._model.gaps import unpack
from .._model.settings import fits
from .._model.units import as_tensor


class Survey(NamedTuple):
    """Range of what networks see of rows, and squared norms (n,) of the rest."""

    low: torch.Tensor
    high: torch.Tensor
    outside: torch.Tensor


class _Rows:
    """Rows of an array; indexed by a tensor they are in float32 and internal units.

    Rows are wanted on ``device``; indices must be on ``index_device``. Values are
    ``ratio`` times those of ``all``, of which they may be the first. With a
    ``completion`` they are rows with gaps.
    """

    ratio, completion = 1.0, None

    def __init__(self, X, units, device, index_device, completion=None):
        self.X, self.units, self.completion = X, units, completion
        width = units.n_internal if completion is None else completion.width
        self.shape = len(X), width
        self.device, self.index_device = device, index_device

    @property
    def all(self):
        """Rows with all internal values that there are."""
        return self

    def in_units(self, units, completion=None):
        """The same for a model with fewer of the same axes, or with a completion."""
        if completion is not None:
            return place_rows(self.X, units, self.device, completion)
        rows = self.all
        # The size of values depends on the number of axes.
        if units.n_seen == rows.units.n_seen:
            return rows
        return NarrowRows(rows, units)

    def __len__(self):
        return self.shape[0]

    @property
    def width(self):
        """int : Numbers that indexing takes for a row."""
        return self.X.shape[1]

    def convert(self, X):
        """Data to what training sees."""
        if self.completion is None:
            return self.units.to_internal(X)
        return self.completion.complete(self.units.standardize(X))

    def complete_at(self, noise_variance):
        """Complete rows with gaps by the linear model at another noise variance."""
        before = self.completion
        self.completion = before.at(noise_variance)
        return self.completion is not before

    @cached_property
    def survey(self):
        """Survey : Facts about all rows, which may lie in a file."""
        return self._survey()

    def _survey(self, converted=None):
        """Convert all rows, in blocks."""
        # All is written in place: small tensors that outlive a block would lie between
        # the freed memory of large ones, which then cannot be used again.
        low = torch.full((self.units.n_seen,), math.inf, dtype=torch.float64)
        high, outside = -low, torch.empty(len(self), dtype=torch.float64)
        for block in row_blocks(self.X.shape):
            x = self.units.standardize(self.X[block])
            rows = None
            if self.completion is not None:
                rows = self.completion.complete(x)
                x, *_ = unpack(rows, x.shape[1])
            inside, outside[block] = self.units.split(x)
            seen = inside if self.units.rotates else self.units.coordinates(x)
            torch.minimum(low, seen.amin(dim=0), out=low)
            torch.maximum(high, seen.amax(dim=0), out=high)
            if converted is not None:
                converted[block] = inside if rows is None else rows
        return Survey(low, high, outside)


class ResidentRows(_Rows):
    """Rows kept on the device, converted."""

    def __init__(self, X, units, device, completion=None):
        super().__init__(X, units, device, device, completion)
        self._x = torch.empty(self.shape, dtype=torch.float32, device=device)
        # In blocks, since a conversion goes through several arrays, some in float64.
        self.survey = self._survey(self._x)

    @property
    def width(self):
        """int : Numbers that indexing takes for a row."""
        return self.shape[1]

    def __getitem__(self, index):
        return self._x[index]

    def complete_at(self, noise_variance):
        """See :class:`_Rows`; in place, where captured steps find them."""
        if super().complete_at(noise_variance):
            for block in row_blocks(self.X.shape):
                self._x[block] = self.convert(self.X[block])


class IntegerRows(_Rows):
    """Rows of unsigned integers kept on the device, in less memory than floats."""

    def __init__(self, X, units, device):
        super().__init__(X, units, device, device)
        x = as_tensor(X)
        self._dtype = x.dtype
        # Torch supports little for 16-bit unsigned integers; signed ones are as wide.
        width = {1: torch.uint8, 2: torch.int16}[X.itemsize]
        self._x = x.view(width).to(device)
        self._standardize = units.float32_map(device)

    def __getitem__(self, index):
        x = self._x[index].view(self._dtype).to(torch.float32)
        return self.units.rotate(self._standardize(x))


class HostRows(_Rows):
    """Rows left in the user's array, sent to the device when they are needed."""

    def __init__(self, X, units, device, completion=None):
        super().__init__(X, units, device, torch.device("cpu"), completion)

    def __getitem__(self, index):
        x = self.convert(self.X[index.numpy()]).to(torch.float32)
        if self.device.type == "cuda":
            # So that the copy runs while the host prepares what comes next.
            x = x.pin_memory()
        return x.to(self.device, non_blocking=True)


class NarrowRows(_Rows):
    """Other rows, in the units of a model with fewer of the same axes."""

    def __init__(self, rows, units):
        super().__init__(rows.X, units, rows.device, rows.index_device)
        self._all = rows
        self.ratio = float(rows.units.scale[0] / units.scale[0])

    @property
    def all(self):
        """Rows with all internal values that there are."""
        return self._all

    def __getitem__(self, index):
        return self.all[index][:, : self.shape[1]] * self.ratio

    def _survey(self):
        if not self.units.rotates:
            return super()._survey()
        low, high, outside = self.all.survey
        n = self.shape[1]
        step, total = max(1, CONVERTED // self.all.width), outside.clone()
        for index in torch.arange(len(self)).split(step):
            rest = self.all[index.to(self.index_device)][:, n:]
            total[index] += rest.square().sum(dim=1).cpu()
        ratio = self.ratio
        return Survey(low[:n] * ratio, high[:n] * ratio, total * ratio**2)


def place_rows(X, units, device, completion=None):
    """Keep the rows of an array where training on a device reads them fastest.

    With a completion they are rows with gaps.
    """
    if completion is not None:
        is_small = fits(4 * len(X) * completion.width, device) and not _is_mapped(X)
        kind = ResidentRows if is_small else HostRows
        return kind(X, units, device, completion)
    is_integer = X.dtype.kind == "u"
    n_bytes = 4 * len(X) * units.n_internal
    if is_integer and n_bytes > X.nbytes:
        # On the CPU they are already in place.
        on_host = device.type == "cpu" or units.float32_map(device) is None
        kind, n_bytes = (HostRows if on_host else IntegerRows), X.nbytes
    else:
        kind = ResidentRows
    if _is_mapped(X) or not fits(n_bytes, device):
        kind = HostRows
    return kind(X, units, device)


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
        return x, x[..., : self.rows.units.n_internal]

    @property
    def X(self):  # noqa: N802, the name that skorch looks for
        """torch.Tensor : All of them, for scoring callbacks that do not cache."""
        return self.rows[self.index]

    @property
    def y(self):
        """torch.Tensor : The same, since a row is its own target, without gaps."""
        return self.X[..., : self.rows.units.n_internal]

    @property
    def device(self):
        """torch.device : Where batches are."""
        return self.rows.device

    @property
    def n_features(self):
        """int : Features of a row."""
        return self.rows.X.shape[1]

    @cached_property
    def _known(self):
        """Fraction of the rows in which each feature is known, or None for all."""
        if self.rows.completion is None:
            return None
        n_known, index = np.zeros(self.n_features), self.index.cpu()
        for some in index.split(max(1, CONVERTED // self.n_features)):
            n_known += (~np.isnan(self.rows.X[some.numpy()])).sum(axis=0)
        return n_known / len(index)

    @property
    def n_observed(self):
        """int or float : Mean number of features that are known of a row."""
        return self.n_features if self._known is None else float(self._known.sum())

    @property
    def log_volume(self):
        """float : Mean of what the change of units adds to the loss of a row."""
        units = self.rows.units
        if self._known is None:
            return units.log_volume
        return float(self._known @ np.log(units.scale))

    def complete_for(self, criterion):
        """Complete rows with gaps for noise that has changed in training."""
        noise_variance = criterion.noise_variance
        if self.rows.completion is not None and noise_variance is not None:
            self.rows.complete_at(noise_variance)

    @property
    def order(self):
        """tuple : Equal for selections of the same rows in the same order."""
        return id(self.rows.all), id(self.index)

    @cached_property
    def outside(self):
        """float : Mean squared norm of what rows have outside of the axes."""
        if not self.rows.units.n_outside:
            return 0.0
        return float(self.rows.survey.outside[self.index.cpu()].mean())

    def of(self, rows):
        """The same of other rows for the same data; itself for its own."""
        return self if rows is self.rows else Selection(rows, self.index)

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
        n_numbers = self.sizes[0] * rows.width
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
