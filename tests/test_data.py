"""Rows wherever they lie, and the batches that training and evaluation see."""

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback
from small_vae import (
    BatchNormNetwork,
    callback_of,
    low_rank_rows,
    same_weights,
    small_vae,
    weights,
)

from sklearn_sigmavae import SigmaVAE
from sklearn_sigmavae._model.units import Units
from sklearn_sigmavae._training import pca
from sklearn_sigmavae._training.data import (
    HostRows,
    IntegerRows,
    ResidentRows,
    place_rows,
)

CPU = torch.device("cpu")
X = low_rank_rows(90)


def of_type(dtype):
    """Rows in the whole range of a type of integers."""
    scaled = (X - X.min()) / np.ptp(X) * np.iinfo(dtype).max
    return scaled.round().astype(dtype)


def test_integers_and_maps_of_files_are_not_copied(tmp_path):
    units = Units.of_data(X, np.ones(5))
    np.save(tmp_path / "X.npy", X)
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    assert type(place_rows(X, units, CPU)) is ResidentRows
    for rows in (of_type(np.uint8), mapped, np.asarray(mapped[3:]).reshape(-1, 1, 5)):
        assert type(place_rows(rows, units, CPU)) is HostRows


# IntegerRows are for other devices, but know nothing of them.
@pytest.mark.parametrize("kind", [ResidentRows, IntegerRows, HostRows])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_all_kinds_of_rows_are_the_same_rows(kind, dtype):
    A = of_type(dtype)
    A.setflags(write=False)
    units = Units.of_data(A, np.ones(5))
    x = kind(A, units, CPU)[torch.tensor([5, 0, 5])]
    assert x.dtype == torch.float32
    expected = (A[[5, 0, 5]] - units.offset) / units.scale
    np.testing.assert_allclose(x, expected, atol=1e-6)


class BatchRecorder(Callback):
    """Keeps the rows of the training batches."""

    def on_train_begin(self, net, **kwargs):
        self.batches = []

    def on_batch_end(self, net, batch, training, **kwargs):
        if training:
            self.batches.append(batch[0].clone())


@pytest.mark.parametrize(
    ("n_rows", "batch_size", "sizes"),
    [
        (9, 4, [4, 5]),
        (10, 4, [4, 4, 2]),
        (8, 4, [4, 4]),
        (5, 4, [5]),
        (3, 4, [3]),
        # Batches of one row are what was asked for.
        (3, 1, [1, 1, 1]),
        # Large enough not to be gathered from the rows at once.
        (1801, 600, [600, 600, 601]),
    ],
)
def test_an_epoch_sees_each_row_once_and_none_alone(n_rows, batch_size, sizes):
    rows = low_rank_rows(n_rows, 5 if n_rows < 100 else 1000)
    params = {"init": "random", "learning_rate": 1e-6, "max_iter": 1}
    vae = small_vae(batch_size=batch_size, callbacks=[BatchRecorder()], **params)
    vae.set_params(early_stopping=False)
    batches = callback_of(vae.fit(rows), BatchRecorder).batches
    assert [len(x) for x in batches] == sizes
    seen = np.concatenate(batches)[:, 0]
    internal = vae.module_.units.to_internal(rows).numpy()[:, 0]
    np.testing.assert_allclose(np.sort(seen), np.sort(internal), rtol=1e-5)
    assert n_rows < 5 or not np.allclose(seen, internal)


@pytest.mark.parametrize("schedule", ["one_cycle", "constant"])
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_batch_normalisation_sees_no_single_row(schedule, method):
    # 33 rows in batches of 16.
    params = {"early_stopping": False, "lr_schedule": schedule, "max_iter": 2}
    vae = small_vae(network=BatchNormNetwork(), **params)
    getattr(vae, method)(X[:33])
    assert set(vae.history_[:, "train_batch_count"]) == {2}
    assert np.isfinite(vae.score(X))
    # All batches of all epochs, and nothing else, went through the layer.
    counts = [value for name, value in weights(vae).items() if "batches" in name]
    assert counts
    assert all(count == 2 * vae.n_iter_ for count in counts)


def test_large_data_starts_from_some_of_its_rows(monkeypatch):
    A = low_rank_rows(2000, 20, rank=3)
    start = SigmaVAE(n_components=3, sigma=0.3, max_iter=0, random_state=0)
    score_of_all = start.fit(A).score(A)
    monkeypatch.setattr(pca, "INITIAL", 20 * 600)
    # As a fit of 60 or so numbers to 600 of 2000 rows goes.
    assert 0 < score_of_all - start.fit(A).score(A) < 0.2
    some = weights(start)
    assert same_weights(some, weights(start.fit(A)))
    monkeypatch.setattr(pca, "INITIAL", 20)
    # 24 rows, eight for each component.
    assert np.isfinite(start.fit(A).score(A))
