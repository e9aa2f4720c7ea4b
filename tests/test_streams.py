"""Data in files: the same results, without the data in memory."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_vae import low_rank_rows, same_weights, small_vae, weights


def mapped(folder, X):
    """An array as a read-only map of a file."""
    X.tofile(folder / "data")
    return np.memmap(folder / "data", dtype=X.dtype, mode="r", shape=X.shape)


def as_bytes(X):
    return np.clip(40 * X + 100, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    "X",
    [
        low_rank_rows(),
        low_rank_rows().astype(np.float32),
        as_bytes(low_rank_rows()),
        as_bytes(low_rank_rows()).astype(np.uint16),
        as_bytes(low_rank_rows(n_features=12)).reshape(-1, 3, 4),
    ],
    ids=lambda X: f"{X.dtype}, {X.ndim}",
)
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_a_map_gives_what_its_rows_in_memory_give(tmp_path, X, method):
    sigma = 0.3 if X.dtype.kind == "f" else 10.0
    rows = mapped(tmp_path, X)
    in_memory, vae = (getattr(small_vae(sigma=sigma), method)(A) for A in (X, rows))
    assert same_weights(weights(vae), weights(in_memory))
    np.testing.assert_array_equal(vae.transform(rows), in_memory.transform(X))
    np.testing.assert_array_equal(vae.score_samples(rows), in_memory.score_samples(X))
    if method == "fit":
        in_memory.fit(X[:40], X_val=X[40:])
        vae.fit(X[:40], X_val=rows[40:])
        assert same_weights(weights(vae), weights(in_memory))


def own_memory():
    """Memory of this process in MB, without what the system keeps of files."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"RssAnon:\s+(\d+)", status)[1]) / 1024


def use_a_large_map(path, n_rows):
    """Fit to, and transform, a map; print by how much memory grew."""
    from skorch.callbacks import Callback

    class Watch(Callback):
        peak = 0

        def on_epoch_end(self, net, **kwargs):
            Watch.peak = max(Watch.peak, own_memory())

    X = np.memmap(path, dtype=np.float32, mode="r", shape=(n_rows, 500))
    params = {"max_iter": 1, "batch_size": 1024, "hidden_layer_sizes": ()}
    # What is needed for the first fit in any case.
    small_vae(**params).fit(np.array(X[:20_000])).transform(X[:20_000])
    before = own_memory()
    vae = small_vae(**params, callbacks=[Watch()]).fit(X)
    assert vae.transform(X).shape == (n_rows, 2)
    print(max(Watch.peak, own_memory()) - before)


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="needs Linux's /proc"
)
def test_a_map_is_never_in_memory(tmp_path):
    rng, path = np.random.default_rng(0), tmp_path / "data"
    with open(path, "wb") as file:
        for _ in range(6):
            rng.standard_normal((20_000, 500), np.float32).tofile(file)
    size = path.stat().st_size / 2**20
    command = [sys.executable, __file__, str(path), "120000"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    grown = float(done.stdout)
    print(f"a file of {size:.0f} MB: memory grew by {grown:.0f} MB")
    assert grown < size / 3


if __name__ == "__main__":
    use_a_large_map(sys.argv[1], int(sys.argv[2]))
