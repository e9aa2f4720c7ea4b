"""Batches sliced from rows on a device, with the points to evaluate the bound at.

A loader that fetches row by row costs more than the training step on a small table;
these slice whole batches out of a tensor.
"""

import math

import torch

# Numbers that are gathered from the rows at once: enough to make the cost of a call
# small, few enough to stay in cache and to take no memory worth mentioning.
_GATHERED = 2**20

# Rows times points of an evaluation batch.
_EVALUATION_BATCH = 4096


class TrainingBatches:
    """Shuffled batches, each with one draw from the standard normal for each row.

    Parameters
    ----------
    dataset : torch.utils.data.TensorDataset
        Its first tensor holds the rows, in internal units.
    batch_size : int
        Rows in a batch; the last one may have fewer.
    n_components : int
        Dimension of the draws.
    generator : torch.Generator
        Source of the order and of the draws, on the device of the rows.
    """

    def __init__(self, dataset, batch_size, n_components, generator):
        self.dataset = dataset
        self.batch_size = batch_size
        self.n_components = n_components
        self.generator = generator

    def __len__(self):
        return math.ceil(len(self.dataset) / self.batch_size)

    def __iter__(self):
        x = self.dataset.tensors[0]
        random = {"generator": self.generator, "device": x.device}
        n_batches = max(1, _GATHERED // (self.batch_size * x[0].numel()))
        order = torch.randperm(len(x), **random)
        for index in order.split(n_batches * self.batch_size):
            eps = torch.randn(len(index), self.n_components, dtype=x.dtype, **random)
            yield from zip(
                x[index].split(self.batch_size),
                eps.split(self.batch_size),
                strict=True,
            )


class EvaluationBatches:
    """Batches in order, each with pairs of opposite points for each row.

    The points are the same in every pass, so that passes differ by the weights alone.

    Parameters
    ----------
    dataset : torch.utils.data.TensorDataset
        Its first tensor holds the rows, in internal units.
    n_components : int
        Dimension of the points.
    n_points : int
        About how many points there should be over all rows; each has two at least.
    """

    def __init__(self, dataset, n_components, n_points):
        self.dataset = dataset
        self.n_components = n_components
        self.n_pairs = max(1, n_points // (2 * len(dataset)))
        self.batch_size = max(1, _EVALUATION_BATCH // (2 * self.n_pairs))

    def __len__(self):
        return math.ceil(len(self.dataset) / self.batch_size)

    def __iter__(self):
        x = self.dataset.tensors[0]
        generator = torch.Generator(x.device).manual_seed(0)
        for rows in x.split(self.batch_size):
            eps = torch.randn(
                self.n_pairs,
                len(rows),
                self.n_components,
                generator=generator,
                dtype=x.dtype,
                device=x.device,
            )
            yield rows, torch.cat([eps, -eps])
