"""Rows wherever they lie, and the batches that training and evaluation see."""

import numpy as np
import pytest
import torch
from small_vae import (
    BatchNormNetwork,
    low_rank_rows,
    same_weights,
    small_vae,
    weights,
)

from sklearn_sigmavae import SigmaVAE, _batches, _start
from sklearn_sigmavae._batches import (
    EvaluationBatches,
    HostRows,
    IntegerRows,
    ResidentRows,
    Selection,
    SelectionStack,
    TrainingBatches,
    place_rows,
)
from sklearn_sigmavae._module import Units

CPU = torch.device("cpu")
X = low_rank_rows(90)


def on_disk(X, path):
    np.save(path, X)
    return np.load(path, mmap_mode="r")


def of_type(dtype):
    """Rows in the whole range of a type of integers."""
    top = np.iinfo(dtype).max
    scaled = (X - X.min()) / np.ptp(X) * top
    return scaled.round().astype(dtype)


def test_rows_lie_where_training_gets_at_them_best(tmp_path):
    units = Units.of_data(X, np.ones(5))
    assert type(place_rows(X, units, CPU)) is ResidentRows
    assert type(place_rows(of_type(np.uint8), units, CPU)) is HostRows
    mapped = on_disk(X, tmp_path / "X.npy")
    for view in (mapped, mapped[3:], np.asarray(mapped).reshape(-1, 5)):
        assert type(place_rows(view, units, CPU)) is HostRows


# Where there is another device these are on it, but they know nothing of devices.
@pytest.mark.parametrize("kind", [ResidentRows, IntegerRows, HostRows])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("index", [torch.tensor([5, 0, 5]), slice(None)])
def test_all_kinds_of_rows_are_the_same_rows(kind, dtype, index):
    A = of_type(dtype)
    A.setflags(write=False)
    units = Units.of_data(A, np.ones(5))
    rows = kind(A, units, CPU)
    assert len(rows) == 90
    assert rows.shape == (90, 5)
    selection = Selection(rows)
    x = rows[selection.index[index]]
    assert x.dtype == torch.float32
    expected = (A[index] - units.offset) / units.scale
    np.testing.assert_allclose(x, expected, atol=1e-6)


def test_selections_are_data_sets_for_skorch():
    rows = ResidentRows(X, Units.of_data(X, np.ones(5)), CPU)
    selection = Selection(rows, torch.tensor([7, 3]))
    assert len(selection) == 2
    assert torch.equal(selection.X, rows[torch.tensor([7, 3])])
    assert all(torch.equal(part, selection.X[1]) for part in selection[1])
    assert torch.equal(selection.y, selection.X)


@pytest.mark.parametrize("batch_size", [1, 7, 30, 100])
def test_an_epoch_sees_each_selected_row_once(batch_size):
    rows = ResidentRows(X, Units.identity(5), CPU)
    selection = Selection(rows, torch.arange(10, 70))
    generator = torch.Generator().manual_seed(0)
    iterator = TrainingBatches(selection, batch_size, 2, generator)
    batches = list(iterator)
    assert len(batches) == len(iterator)
    assert all(len(x) == len(eps) <= batch_size for x, eps in batches)
    seen = torch.cat([x for x, _ in batches])
    assert not torch.equal(seen, selection.X)
    assert sorted(seen[:, 0].tolist()) == sorted(selection.X[:, 0].tolist())


@pytest.mark.parametrize(
    ("n_rows", "batch_size", "sizes"),
    [
        (9, 4, [4, 5]),
        (10, 4, [4, 4, 2]),
        (8, 4, [4, 4]),
        (5, 4, [5]),
        (3, 4, [3]),
        (1, 4, [1]),
        # Asked for.
        (3, 1, [1, 1, 1]),
    ],
)
@pytest.mark.parametrize("gathered", [1, 2**20])
def test_no_row_is_left_alone(monkeypatch, n_rows, batch_size, sizes, gathered):
    monkeypatch.setattr(_batches, "_GATHERED_ON_CPU", gathered)
    rows = ResidentRows(X[:n_rows], Units.identity(5), CPU)
    iterators = [
        Selection(rows).training_batches(batch_size, 2, [torch.Generator()]),
        SelectionStack([Selection(rows)] * 2, [0, 1, 1]).training_batches(
            batch_size, 2, [torch.Generator(), torch.Generator()]
        ),
    ]
    for iterator in iterators:
        assert len(iterator) == len(sizes)
        assert iterator.sizes == sizes
        batches = list(iterator)
        assert [x.shape[-2] for x, _ in batches] == sizes
        assert [eps.shape[-2] for _, eps in batches] == sizes
        seen = torch.cat([x for x, _ in batches], dim=-2)
        expected = Selection(rows).X[:, 0].sort().values
        assert (seen[..., 0].sort().values == expected).all()


@pytest.mark.parametrize("schedule", ["one_cycle", "constant"])
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_batch_normalisation_sees_no_single_row(schedule, method):
    # 33 rows in batches of 16.
    params = {"early_stopping": False, "lr_schedule": schedule, "max_iter": 2}
    vae = small_vae(network=BatchNormNetwork(), **params)
    getattr(vae, method)(X[:33])
    assert set(vae.history_[:, "train_batch_count"]) == {2}
    assert np.isfinite(vae.score(X))
    # All rows of an epoch, and none else, went through the layer.
    counts = [value for name, value in weights(vae).items() if "batches" in name]
    assert counts
    assert all(count == 2 * vae.n_iter_ for count in counts)


@pytest.mark.parametrize("width", [1, 2**19])
def test_evaluation_sees_rows_in_order_at_opposite_points(width):
    vae = small_vae(max_iter=0).fit(X).module_
    vae.width = width
    rows = ResidentRows(X, vae.units, CPU)
    iterator = EvaluationBatches(Selection(rows), vae, n_points=400)
    batches = list(iterator)
    assert len(batches) == len(iterator)
    assert torch.equal(torch.cat([x for x, _ in batches]), Selection(rows).X)
    for x, eps in batches:
        assert eps.shape == (4, len(x), 2)
        assert torch.equal(eps[:2], -eps[2:])
        assert len(x) * 4 * width <= max(2**21, 4 * width)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8])
def test_a_mapped_file_trains_like_an_array(tmp_path, dtype):
    A = (40 * (X - X.min())).astype(dtype)
    mapped = on_disk(A, tmp_path / "X.npy")
    of_array, of_file = (small_vae(sigma=9.0).fit(a) for a in (A, mapped))
    assert same_weights(weights(of_array), weights(of_file))
    np.testing.assert_array_equal(of_array.transform(A), of_file.transform(mapped))


def test_large_data_starts_from_some_of_its_rows(monkeypatch):
    A = low_rank_rows(2000, 20, rank=3)
    params = {"n_components": 3, "sigma": 0.3, "max_iter": 0, "random_state": 0}
    of_all = SigmaVAE(**params).fit(A)
    monkeypatch.setattr(_start, "NUMBERS_FOR_START", 20 * 600)
    of_some = SigmaVAE(**params).fit(A)
    loss = of_all.score(A) - of_some.score(A)
    # As a fit of 60 or so numbers to 600 of 2000 rows goes.
    assert 0 < loss < 0.2
    again = SigmaVAE(**params).fit(A)
    assert same_weights(weights(of_some), weights(again))
    monkeypatch.setattr(_start, "NUMBERS_FOR_START", 20)
    # 24 rows, eight for each component.
    assert np.isfinite(SigmaVAE(**params).fit(A).score(A))
