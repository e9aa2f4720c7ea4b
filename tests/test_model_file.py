"""Saving and loading: the same model, from a file that is only data."""

import copy
import math
import pickle
import warnings
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from small_vae import (
    BatchNormNetwork,
    DropoutNetwork,
    EpochRecorder,
    low_rank_rows,
    rows_of,
    same_weights,
    small_vae,
    weights,
)

from sklearn_sigmavae import GeneralizedNormalNoise, ModelFileError, SigmaVAE, _files
from sklearn_sigmavae._model import bound
from sklearn_sigmavae._model.fitted import OUTCOME
from sklearn_sigmavae._model.vae import Posterior
from sklearn_sigmavae.networks import MLP, Conv
from sklearn_sigmavae.noise import BernoulliNoise, NoiseModel

GOLDEN = Path(__file__).parent / "golden"

X = low_rank_rows()
IMAGES = np.random.RandomState(0).randint(0, 256, (40, 6, 5, 3)).astype(np.uint8)

VARIANTS = {
    "defaults": ({}, X),
    "float32": ({}, X.astype(np.float32)),
    "mle": ({"sigma": "mle"}, X),
    "auto": ({"sigma": "auto"}, X),
    "scales": ({"sigma": [0.1, 0.2, 0.3, 0.4, 0.5]}, X),
    "series of scales": ({"sigma": pd.Series(np.linspace(0.1, 0.5, 5))}, X),
    "array of scales": ({"sigma": np.linspace(0.1, 0.5, 5)}, X),
    "numpy number": ({"sigma": np.float32(0.3), "beta": np.int64(1)}, X),
    "laplace": ({"noise": "laplace"}, X),
    "exponent": ({"noise": GeneralizedNormalNoise(exponent=1.5)}, X),
    "bernoulli": ({"noise": BernoulliNoise()}, (X > 0).astype(float)),
    "linear": ({"hidden_layer_sizes": ()}, X),
    "list of sizes": ({"hidden_layer_sizes": [8, 6]}, X),
    "recipe": ({"network": MLP((7,), activation="relu")}, X),
    "no linear path": ({"linear_path": False, "init": "random"}, X),
    "start": ({"max_iter": 0}, X),
    "all rows": ({"early_stopping": False}, X),
    "images": ({"network": "conv", "sigma": 30.0}, IMAGES),
    "conv recipe": ({"network": Conv((4,)), "sigma": 30.0}, IMAGES),
    "flat images": (
        {"image_shape": [5, 6, 3], "network": "conv", "sigma": 30.0},
        IMAGES.reshape(40, -1),
    ),
    "large offset": ({"sigma": 1e-3}, 1e4 + 1e-2 * X),
    "constant column": ({}, np.column_stack([X, np.ones(len(X))])),
}


@pytest.fixture
def path(tmp_path):
    """Where a file may be."""
    return tmp_path / "model.safetensors"


def behaviour(vae, X):
    """All that can be asked of a model."""
    Z = vae.transform(X)
    found = [
        Z,
        vae.score_samples(X),
        vae.score_samples(X, n_importance_samples=5),
        vae.kl_divergence(X),
        *vae.posterior(X),
        vae.inverse_transform(Z),
        vae.sample(5, add_noise=True, random_state=0),
    ]
    if vae.noise_.has_scale:
        found.append(vae.denoise(X[:5], noise_scale=1.0, max_iter=3))
    return found


def rows_without_batches(vae):
    return rows_of(vae.history_, skipped=("batches",))


def assert_same(loaded, vae, X):
    for ours, theirs in zip(behaviour(loaded, X), behaviour(vae, X), strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == theirs.dtype
    for name in ("n_features_in", *OUTCOME):
        assert getattr(loaded, f"{name}_") == getattr(vae, f"{name}_")
    assert type(loaded.sigma_) is type(vae.sigma_)
    np.testing.assert_array_equal(loaded.sigma_, vae.sigma_)
    assert rows_without_batches(loaded) == rows_without_batches(vae)


def assert_same_params(loaded, vae):
    for name, value in vae.get_params(deep=False).items():
        ours = getattr(loaded, name)
        if isinstance(value, np.ndarray | pd.Series):
            np.testing.assert_array_equal(ours, value)
        elif hasattr(value, "get_params"):
            assert type(ours) is type(value)
            assert ours.get_params() == value.get_params()
        else:
            assert ours == value


@pytest.mark.parametrize(("params", "X"), VARIANTS.values(), ids=VARIANTS)
def test_a_loaded_model_is_the_saved_one_and_can_do_all_that_it_can(params, X, path):
    vae = small_vae(**params).fit(X)
    vae.save(path)
    loaded = SigmaVAE.load(path, device="cpu")
    assert_same_params(loaded, vae)
    assert not hasattr(loaded, "net_")
    for copied in (loaded, copy.deepcopy(loaded), pickle.loads(pickle.dumps(loaded))):
        assert_same(copied, vae, X)
    assert joblib.hash(loaded)
    assert same_weights(weights(clone(loaded).fit(X)), weights(vae))
    before = weights(loaded)
    assert loaded.partial_fit(X).n_iter_ == vae.n_iter_ + 1
    assert loaded.net_.module_ is loaded.module_
    assert not same_weights(weights(loaded), before)
    loaded.save(path)
    assert_same(SigmaVAE.load(path, device="cpu"), loaded, X)


def test_the_same_model_gives_the_same_file(vae, path):
    vae.save(path)
    content = path.read_bytes()
    SigmaVAE.load(path, device="cpu").save(path)
    assert path.read_bytes() == content


def test_names_of_features_and_the_kind_of_output_are_kept(path):
    frame = pd.DataFrame(X, columns=["a", "b", "ü", "", "a b"])
    vae = small_vae().set_output(transform="pandas").fit(frame)
    vae.save(path)
    loaded = SigmaVAE.load(path, device="cpu")
    assert loaded.feature_names_in_.tolist() == list(frame.columns)
    assert loaded.feature_names_in_.dtype == object
    pd.testing.assert_frame_equal(loaded.transform(frame), vae.transform(frame))
    with pytest.raises(ValueError, match="feature names"):
        loaded.transform(frame.rename(columns={"a": "z"}))
    vae.fit(frame.rename(columns={"b": "b\0"}))
    with pytest.raises(ValueError, match="zero byte"):
        vae.save(path)


def test_a_history_of_unequal_rows_is_kept(path):
    vae = small_vae(warm_start=True, early_stopping=False).fit(X)
    vae.set_params(early_stopping=True).fit(X)
    vae.save(path)
    loaded = SigmaVAE.load(path)
    assert len(loaded.history_) == 6
    assert rows_without_batches(loaded) == rows_without_batches(vae)
    assert "valid_loss" not in loaded.history_[0]


@pytest.mark.parametrize(("n_columns", "n_kept"), [(3, 200), (40, 100)])
def test_of_long_histories_the_last_epochs_are_kept(
    path, n_columns, n_kept, monkeypatch
):
    monkeypatch.setattr(_files, "_MAX_EPOCHS", 200)
    vae = small_vae().fit(X)
    row = dict.fromkeys(map(str, range(n_columns - 1)), 1.0)
    vae.history_[:] = [{"batches": [], "epoch": i, **row} for i in range(250)]
    vae.save(path)
    history = SigmaVAE.load(path).history_
    assert len(history) == n_kept
    assert history[-1, "epoch"] == 249


def test_parameters_set_after_the_fit_are_kept_beside_the_model(path):
    vae = small_vae().fit(X)
    vae.set_params(n_components=5, noise="laplace", hidden_layer_sizes=(3,))
    vae.save(path)
    loaded = SigmaVAE.load(path, device="cpu")
    assert (loaded.n_components, loaded.noise) == (5, "laplace")
    np.testing.assert_array_equal(loaded.transform(X), vae.transform(X))
    with pytest.raises(ValueError, match="cannot change hidden_layer_sizes, n_comp"):
        loaded.partial_fit(X)


@pytest.mark.parametrize("network", [DropoutNetwork(), BatchNormNetwork()], ids=repr)
def test_networks_of_your_own_are_passed_again(network, path):
    vae = small_vae(network=network).fit(X)
    vae.save(path)
    with pytest.raises(ModelFileError, match=rf"small_vae\.{type(network).__name__}"):
        SigmaVAE.load(path)
    before = torch.random.get_rng_state()
    loaded = SigmaVAE.load(path, network=clone(network), device="cpu")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert_same(loaded, vae, X)
    loaded.partial_fit(X)
    other = (BatchNormNetwork, DropoutNetwork)[isinstance(network, BatchNormNetwork)]
    with (
        pytest.warns(UserWarning, match=f"{type(network).__name__}', not small_vae"),
        pytest.raises(ModelFileError, match="not those of its network"),
    ):
        SigmaVAE.load(path, network=other())
    small_vae(network=DropoutNetwork()).fit(X).save(path)
    with pytest.raises(ModelFileError, match="not those of its network"):
        SigmaVAE.load(path, network=DropoutNetwork(width=9))


class Buffered(MLP):
    """A recipe whose network has a buffer that no file holds."""

    def encoder(self, input_shape, n_components):
        network = super().encoder(input_shape, n_components)
        network.register_buffer("odd", torch.zeros(2, dtype=torch.complex64))
        return network


def test_types_that_no_file_holds_are_reported(path):
    vae = small_vae(network=Buffered((4,)), checkpoint_dir=path.parent)
    with pytest.raises(TypeError, match=r"(?s)odd.*complex64"):
        vae.fit(X)
    with pytest.raises(TypeError, match=r"(?s)odd.*complex64"):
        vae.set_params(checkpoint_dir=None).fit(X).save(path)


class WideNoise(GeneralizedNormalNoise):
    """A noise model that no file knows."""


def test_noise_of_your_own_is_passed_again(path):
    vae = small_vae(noise=WideNoise(1.5)).fit(X)
    vae.save(path)
    with pytest.raises(ModelFileError, match=r"load\(path, noise="):
        SigmaVAE.load(path)
    assert_same(SigmaVAE.load(path, noise=WideNoise(1.5), device="cpu"), vae, X)


@pytest.mark.parametrize("given", [{"network": MLP()}, {"noise": BernoulliNoise()}])
def test_what_a_file_holds_itself_is_not_passed(vae, path, given):
    vae.save(path)
    with pytest.raises(ModelFileError, match="holds its"):
        SigmaVAE.load(path, **given)


@pytest.mark.parametrize(
    ("name", "value", "default"),
    [
        ("callbacks", [EpochRecorder()], None),
        ("optimizer", torch.optim.RAdam, "adam"),
        ("random_state", np.random.RandomState(0), None),
    ],
)
def test_objects_that_only_training_needs_are_left_out(path, name, value, default):
    vae = small_vae(**{name: value}).fit(X)
    with pytest.warns(UserWarning, match=f"does not hold '{name}'") as caught:
        vae.save(path)
    assert caught[0].filename == __file__
    loaded = SigmaVAE.load(path, device="cpu")
    assert getattr(loaded, name) == default
    assert_same(loaded, vae, X)


def test_the_device_is_for_the_loader_to_say(vae, path, tmp_path):
    vae.save(path)
    assert SigmaVAE.load(path).device == "auto"
    loaded = SigmaVAE.load(path, device=torch.device("cpu"))
    assert loaded.device == torch.device("cpu")
    with pytest.raises(ValueError, match="'device' parameter") as error:
        SigmaVAE.load(path, device="abacus")
    assert not isinstance(error.value, ModelFileError)


@pytest.mark.gpu
def test_a_model_of_cuda_loads_on_the_cpu(path):
    vae = small_vae(device="cuda").fit(X)
    vae.save(path)
    on_cpu = SigmaVAE.load(path, device="cpu")
    assert on_cpu.module_.device.type == "cpu"
    np.testing.assert_allclose(on_cpu.transform(X), vae.transform(X), atol=1e-5)
    assert SigmaVAE.load(path).module_.device.type == "cuda"


def size_of_weights(vae):
    weights = sum(value.nbytes for value in vae.module_.state_dict().values())
    axes = vae.module_.units.axes
    return weights + (0 if axes is None else axes.nbytes)


def test_the_file_holds_no_rows_and_little_more_than_weights(path):
    X = load_iris().data.astype(np.float32)
    X = np.column_stack([X, np.random.RandomState(0).standard_normal((150, 60))])
    vae = small_vae(max_iter=200).fit(X)
    vae.save(path)
    content = path.read_bytes()
    internal = vae.module_.units.to_internal(X).numpy()
    for rows in (X, X.astype(np.float32), internal, internal.astype(np.float32)):
        assert not any(row[:4].tobytes() in content for row in rows)
    assert len(content) <= 1.05 * size_of_weights(vae) + 2**16
    X = np.random.RandomState(0).standard_normal((64, 784))
    vae = small_vae(hidden_layer_sizes=(512, 512), max_iter=1).fit(X)
    vae.save(path)
    assert path.stat().st_size <= 1.01 * size_of_weights(vae)


def test_an_estimator_must_be_fitted_and_valid_to_be_saved(vae, path):
    with pytest.raises(NotFittedError):
        small_vae().save(path)
    spoilt = copy.deepcopy(vae).set_params(batch_size=0)
    with pytest.raises(ValueError, match="'batch_size' parameter"):
        spoilt.save(path)
    assert not path.exists()


def test_a_subclass_loads_as_itself(path):
    class Sub(SigmaVAE):
        pass

    Sub(2, max_iter=1, hidden_layer_sizes=(4,)).fit(X).save(path)
    assert type(Sub.load(path)) is Sub


def test_skops_takes_pipelines_whose_only_type_to_trust_is_the_estimator(tmp_path):
    io = pytest.importorskip("skops.io")
    path = tmp_path / "pipeline.skops"
    pipeline = make_pipeline(StandardScaler(), small_vae()).fit(X)
    io.dump(pipeline, path)
    trusted = ["sklearn_sigmavae._sigma_vae.SigmaVAE"]
    assert io.get_untrusted_types(file=path) == trusted
    loaded = io.load(path, trusted=trusted)
    np.testing.assert_array_equal(loaded.transform(X), pipeline.transform(X))
    assert loaded.score(X) == pipeline.score(X)
    vae = small_vae(network=DropoutNetwork()).fit(X)
    content = io.dumps(vae)
    of_custom = io.get_untrusted_types(data=content)
    assert "small_vae.DropoutNetwork" in of_custom
    assert_same(io.loads(content, trusted=of_custom), vae, X)
    unfitted = io.loads(io.dumps(small_vae()), trusted=trusted)
    assert unfitted.fit(X).n_iter_ == 3
    with pytest.raises(ValueError, match="'max_iter' parameter"):
        io.dumps(unfitted.set_params(max_iter=-1))


def test_states_of_strangers_are_checked_too(vae):
    state = vae.__getstate__()
    state["header"]["n_components"] = 3
    with pytest.raises(ModelFileError, match="weights"):
        SigmaVAE().__setstate__(state)
    for state in (
        {"_model": vae, "n_components": "x"},
        {"params": {"n_components": "x"}},
        {"params": {"_model": vae}},
    ):
        with pytest.raises(ModelFileError, match="cannot be loaded"):
            SigmaVAE().__setstate__(state)


GOLDEN_FILES = sorted(GOLDEN.glob("*/*.safetensors"))


def points_of_golden_scores(k):
    """The points that scores were taken at when the files were written."""
    random_state = np.random.RandomState(0)
    n_rotations = math.ceil(64 / (2 * k))
    strata = (np.arange(n_rotations) + 0.5) / n_rotations
    squares = stats.chi2(k).ppf(strata)
    columns = [
        np.sqrt(square * k / squares.mean())
        * np.linalg.qr(random_state.standard_normal((k, k)))[0].T
        for square in squares
    ]
    half = torch.from_numpy(np.concatenate(columns)).unsqueeze(1)
    return torch.cat([half, -half])


@pytest.mark.parametrize(
    "path", GOLDEN_FILES, ids=lambda p: f"{p.parent.name}/{p.stem}"
)
def test_golden_files_load_for_ever(path, tmp_path, monkeypatch):
    """What a release has written, all later ones read, to the same results."""
    assert len(GOLDEN_FILES) >= 6
    expected = np.load(path.with_suffix(".npz"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vae = SigmaVAE.load(path, device="cpu")
    rows = expected["rows"]
    if hasattr(vae, "feature_names_in_"):
        rows = pd.DataFrame(rows, columns=vae.feature_names_in_)
    np.testing.assert_allclose(vae.transform(rows), expected["codes"], atol=1e-6)
    scores = vae.score_samples(rows, refine=False)
    assert (vae.score_samples(rows) >= scores).all()
    points = points_of_golden_scores(vae.n_components)
    with monkeypatch.context() as patch:
        weights = torch.full((len(points),), 1 / len(points), dtype=torch.float64)
        patch.setattr(bound, "quadrature", lambda k, noise: (points, weights))
        patch.setattr(
            Posterior, "reflection", property(lambda q: torch.ones_like(q.mean))
        )
        scores = vae.score_samples(rows, refine=False)
    np.testing.assert_allclose(scores, expected["scores"], rtol=1e-6)
    restored = vae.inverse_transform(expected["codes"])
    np.testing.assert_allclose(restored, expected["restored"], rtol=1e-5, atol=1e-5)
    assert isinstance(vae.noise_, NoiseModel)
    vae.save(tmp_path / "again.safetensors")
    again = SigmaVAE.load(tmp_path / "again.safetensors", device="cpu")
    if path.parent.name == "0.1":
        assert np.isnan(again.start_score_)
        assert again.best_epoch_ == vae.n_iter_
    assert again.best_epoch_ == vae.best_epoch_
    assert vae.n_iter_ == len(vae.history_)
    assert np.array_equal(again.inverse_transform(expected["codes"]), restored)
    clone(vae).set_params(max_iter=1).fit(rows)
