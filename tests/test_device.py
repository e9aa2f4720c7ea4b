"""Devices: captured steps and their eager twins, memory, precision, CUDA itself."""

import copy
import math
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.model_selection import GridSearchCV
from skorch.callbacks import Callback
from skorch.exceptions import DeviceWarning
from small_vae import (
    NOISE,
    BatchNormNetwork,
    DropoutNetwork,
    callback_of,
    low_rank_rows,
    same_weights,
    small_vae,
    weights,
)
from torch import nn

from sklearn_sigmavae import BatchedGridSearchCV, SigmaVAEImputer
from sklearn_sigmavae._model.points import quadrature
from sklearn_sigmavae._model.settings import fits, is_out_of_memory, matmul_precision
from sklearn_sigmavae._training import cuda_graph
from sklearn_sigmavae.networks import MLP, Conv
from sklearn_sigmavae.priors import MixturePrior

ROWS = low_rank_rows(70)


# Captured steps. Without CUDA the same code runs with a twin of the graph, which calls
# the function again where a graph would replay it.


class TwinOfGraph:
    """Graph that captures nothing, and counts what it is asked for."""

    waits = None
    error = None
    n_captured = n_replayed = 0

    def run(self, function, *args):
        return function(*args)

    def run_and_watch(self, function, *args):
        return function(*args), self.waits

    def capture(self, function):
        if self.error is not None:
            raise self.error
        type(self).n_captured += 1
        self.function = function

    def replay(self):
        type(self).n_replayed += 1
        self.function()

    def random_state(self):
        return torch.get_rng_state()

    def set_random_state(self, state):
        torch.set_rng_state(state)


@pytest.fixture
def twin(monkeypatch):
    """Make training on the CPU go through a captured step."""
    twin = type("Twin", (TwinOfGraph,), {})
    monkeypatch.setattr(cuda_graph, "CudaGraph", twin)
    monkeypatch.setattr(cuda_graph, "can_capture", lambda *args: True)
    return twin


def with_gaps(X):
    """Rows of which a quarter of the entries is missing."""
    return np.where(np.random.RandomState(5).rand(*X.shape) < 0.25, np.nan, X)


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"lr_schedule": "constant", "early_stopping": False},
        {"sigma": "mle"},
        {"sigma": "auto"},
        {"noise": "laplace", "optimizer": "adamw"},
        {"optimizer": "sgd", "learning_rate": 1e-3},
        {"network": DropoutNetwork()},
        {"network": BatchNormNetwork()},
    ],
    ids=str,
)
@pytest.mark.parametrize("has_gaps", [False, True])
def test_captured_training_is_eager_training(twin, monkeypatch, params, has_gaps):
    rows = with_gaps(ROWS) if has_gaps else ROWS
    captured = small_vae(max_iter=6, **params).fit(rows)
    # Batches of 16 out of 63 or 70 rows, the last one smaller; three steps warm up.
    n_full = len(captured.history_) * (3 if captured.early_stopping else 4)
    assert twin.n_captured == 1
    assert twin.n_replayed == n_full - 3
    monkeypatch.undo()
    eager = small_vae(max_iter=6, **params).fit(rows)
    np.testing.assert_allclose(
        captured.history_[:, "train_loss"], eager.history_[:, "train_loss"], rtol=1e-5
    )
    np.testing.assert_allclose(captured.sigma_, eager.sigma_, rtol=1e-5)
    np.testing.assert_allclose(
        captured.transform(rows), eager.transform(rows), atol=1e-5
    )
    for vae in (captured, eager):
        assert all(type(g["lr"]) is float for g in vae.net_.optimizer_.param_groups)


@pytest.mark.parametrize(("n_rows", "n_replayed"), [(17, 3), (33, 3), (16, 3), (9, 3)])
def test_batches_of_one_row_more_are_captured_where_all_are(twin, n_rows, n_replayed):
    # One batch of 16 or 17 rows an epoch; of 33 rows the 17 run eagerly.
    small_vae(max_iter=6, early_stopping=False).fit(ROWS[:n_rows])
    assert twin.n_captured == 1
    assert twin.n_replayed == n_replayed


def replay_nothing(graph):
    """A graph that computes what it computed when it was captured, or nothing."""


def replay_twice(graph):
    graph.function()
    graph.function()


def replay_another_step(graph):
    # The step on other rows than those of the batch.
    graph.function.__closure__[0].cell_contents.batch[0].add_(1.0)
    graph.function()


@pytest.mark.parametrize(
    "trouble",
    [
        {"error": RuntimeError("operation not permitted when capturing\nstack")},
        {"error": torch.OutOfMemoryError("CUDA out of memory when capturing\nstack")},
        {"waits": UserWarning("called a synchronizing CUDA operation when capturing")},
        {"replay": replay_nothing},
        {"replay": replay_twice},
        {"replay": replay_another_step},
    ],
    ids=lambda trouble: str(next(iter(trouble.values()))).split()[1],
)
@pytest.mark.parametrize("params", [{}, {"sigma": "mle"}, {"sigma": "auto"}], ids=str)
def test_a_step_that_cannot_be_captured_runs_eagerly(
    twin, monkeypatch, trouble, params
):
    for name, value in trouble.items():
        setattr(twin, name, value)
    message = r"could not be captured.*(capturing|differs from the step itself.)$"
    with pytest.warns(UserWarning, match=message) as found:
        captured = small_vae(**params).fit(ROWS)
    assert sum("could not be captured" in str(w.message) for w in found) == 1
    assert twin.n_captured == (1 if "replay" in trouble else 0)
    monkeypatch.undo()
    eager = small_vae(**params).fit(ROWS)
    assert same_weights(weights(captured), weights(eager))


class Changer(Callback):
    """Changes something in the second epoch."""

    def __init__(self, change):
        self.change = change

    def on_epoch_begin(self, net, **kwargs):
        if len(net.history) == 2:
            self.change(net)

    def on_epoch_end(self, net, **kwargs):
        rates = [group["lr"] for group in net.optimizer_.param_groups]
        # A graph would read the tensors that were there when it was captured.
        self.rates = [*getattr(self, "rates", []), *rates]


def halve_rate(net):
    for group in net.optimizer_.param_groups:
        group["lr"] = 0.5 * group["lr"]


def decay_weights(net):
    for group in net.optimizer_.param_groups:
        group["weight_decay"] = 0.1


def freeze(net):
    net.module_.encoder.linear.weight.requires_grad_(False)


def raise_beta(net):
    net.criterion_.beta = 3.0


def reload_optimizer(net):
    net.optimizer_.load_state_dict(copy.deepcopy(net.optimizer_.state_dict()))


@pytest.mark.parametrize(
    ("change", "n_captured"),
    [
        (halve_rate, 1),
        (decay_weights, 2),
        (freeze, 2),
        (raise_beta, 2),
        (reload_optimizer, 2),
    ],
)
def test_captured_steps_see_what_callbacks_change(
    twin, monkeypatch, change, n_captured
):
    params = {"callbacks": [Changer(change)], "lr_schedule": "constant"}
    params |= {"max_iter": 4, "batch_size": 8}
    captured = small_vae(**params).fit(ROWS)
    assert twin.n_captured == n_captured
    rates = callback_of(captured, Changer).rates
    assert all(rate is rates[0] for rate in rates)
    monkeypatch.undo()
    eager = small_vae(**params).fit(ROWS)
    np.testing.assert_allclose(
        captured.transform(ROWS), eager.transform(ROWS), atol=1e-5
    )


class Asker(Callback):
    """Asks whether steps would be captured on CUDA."""

    def on_train_begin(self, net, **kwargs):
        cuda = torch.device("cuda")
        self.answers = [
            cuda_graph.can_capture(net, cuda, n_steps) for n_steps in (10, 1000)
        ]


class BatchAsker(Asker):
    def on_batch_end(self, net, **kwargs):
        pass


class GradientAsker(Asker):
    def on_grad_computed(self, net, **kwargs):
        pass


def capturable_adam(parameters, lr):
    return torch.optim.Adam(parameters, lr=lr, fused=True, capturable=True)


@pytest.mark.parametrize(
    ("asker", "optimizer", "expected"),
    [
        (Asker, capturable_adam, [False, True]),
        (BatchAsker, capturable_adam, [False, False]),
        (GradientAsker, capturable_adam, [False, False]),
        (Asker, torch.optim.Adam, [False, False]),
    ],
)
def test_steps_are_captured_unless_something_stands_against(asker, optimizer, expected):
    vae = small_vae(optimizer=optimizer, callbacks=[asker()]).fit(ROWS)
    assert callback_of(vae, asker).answers == expected


# Memory


def test_out_of_memory_is_told_from_other_errors():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert not is_out_of_memory(RuntimeError("shapes do not match"))


class Greedy(nn.Module):
    """Takes more memory than there is, in training; or fails for large batches."""

    def __init__(self, layer, limit):
        super().__init__()
        self.layer = layer
        self.limit = limit

    def forward(self, x):
        if self.limit is None:
            if self.training and torch.is_grad_enabled():
                torch.empty(2**60, dtype=torch.uint8)
        elif len(x) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return self.layer(x)


class GreedyNetwork(MLP):
    limit = None

    def encoder(self, input_shape, n_components):
        return Greedy(super().encoder(input_shape, n_components), self.limit)

    def decoder(self, n_components, output_shape):
        return Greedy(super().decoder(n_components, output_shape), math.inf)


def test_training_without_enough_memory_says_so():
    vae = small_vae(network=GreedyNetwork((4,)), batch_size=23)
    message = r"batch_size=23. Lower batch_size.*tried to allocate 11529\d+ bytes"
    with pytest.raises(MemoryError, match=message):
        vae.fit(ROWS)
    assert not hasattr(vae, "net_")


@pytest.mark.parametrize("limit", [1, 3, 40])
def test_inference_takes_smaller_blocks_where_memory_is_short(limit):
    params = {"max_iter": 0, "early_stopping": False}
    vae = small_vae(network=GreedyNetwork((4,)), **params).fit(ROWS)
    expected = vae.transform(ROWS), vae.score_samples(ROWS)
    # In front of it are the axes.
    network = vae.module_.encoder.network[-1]
    network.limit = limit
    np.testing.assert_allclose(vae.transform(ROWS), expected[0], atol=1e-12)
    np.testing.assert_allclose(vae.score_samples(ROWS), expected[1], atol=1e-10)
    network.limit = 0
    with pytest.raises(torch.OutOfMemoryError):
        vae.transform(ROWS)


@pytest.mark.parametrize("limit", [64, 150, 3000])
@pytest.mark.parametrize("n_importance_samples", [None, 64])
def test_scores_take_smaller_blocks_where_memory_is_short(limit, n_importance_samples):
    vae = small_vae(network=GreedyNetwork((4,)), max_iter=0).fit(ROWS)
    params = {"n_importance_samples": n_importance_samples}
    expected = vae.score_samples(ROWS, **params)
    # Each row takes these points; the network has the axes behind it.
    n_points = n_importance_samples or len(quadrature(vae.n_components)[0])
    network = vae.module_.decoder.network[0]
    assert isinstance(network, Greedy)
    network.limit = limit
    found = vae.score_samples(ROWS, **params)
    np.testing.assert_allclose(found, expected, atol=1e-10)
    network.limit = n_points - 1
    with pytest.raises(torch.OutOfMemoryError):
        vae.score_samples(ROWS, **params)


def test_data_that_takes_half_of_the_free_memory_stays_on_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (800, 10_000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 500)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 300)
    cuda = torch.device("cuda")
    assert fits(500, cuda)
    assert not fits(501, cuda)
    assert fits(10**15, torch.device("cpu"))


# Precision


def test_float32_on_cuda_is_float32_and_settings_are_put_back():
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn

    def settings():
        return [part.fp32_precision for part in (cuda.matmul, cudnn.conv, cudnn.rnn)]

    before = settings()

    def older_settings():
        return (
            torch.get_float32_matmul_precision(),
            cuda.matmul.allow_tf32,
            cudnn.allow_tf32,
        )

    older_before = older_settings()
    with matmul_precision("cuda:0"):
        assert settings() == ["ieee"] * 3
        assert older_settings() == ("highest", False, False)
        # Of fits in several threads the most exact decides.
        with matmul_precision(torch.device("cuda"), "tf32"):
            assert settings() == ["ieee"] * 3
    with matmul_precision(torch.device("cuda"), "tf32"):
        assert settings() == ["tf32"] * 3
        assert older_settings() == ("high", True, True)
    assert settings() == before
    assert older_settings() == older_before
    first, second = matmul_precision("cuda", "tf32"), matmul_precision("cuda")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert settings() == ["ieee"] * 3
    second.__exit__(None, None, None)
    assert settings() == before
    with pytest.raises(KeyError), matmul_precision("cuda"):
        raise KeyError
    assert settings() == before
    with matmul_precision("cpu", "tf32"):
        assert settings() == before


@pytest.mark.parametrize("network", [MLP((8,)), Conv((3,), hidden_layer_sizes=(8,))])
def test_bfloat16_trains_nearly_as_well_and_scores_in_float32(digits, network):
    params = {"network": network, "image_shape": (8, 8), "n_components": 5}
    exact, rounded = (
        small_vae(**params, sigma=0.2, max_iter=10, precision=precision).fit(digits)
        for precision in ("float32", "bfloat16")
    )
    assert not same_weights(weights(exact), weights(rounded))
    assert all(value.dtype == torch.float32 for value in weights(rounded).values())
    assert abs(rounded.score(digits) - exact.score(digits)) < 0.5
    assert rounded.transform(digits[:3].astype(np.float32)).dtype == np.float32
    # In bfloat16 it would be off by a hundredth or so.
    np.testing.assert_allclose(
        rounded.transform(digits[:50].astype(np.float32)),
        rounded.transform(digits[:50]),
        atol=1e-4,
    )


def test_tf32_changes_nothing_on_the_cpu():
    exact, other = (small_vae(precision=p).fit(ROWS) for p in ("float32", "tf32"))
    assert same_weights(weights(exact), weights(other))


def test_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="'precision' parameter of SigmaVAE"):
        small_vae(precision="float16").fit(ROWS)


# Other machines, compiled networks


def test_a_model_of_cuda_unpickles_without_cuda():
    if torch.cuda.is_available():
        pytest.skip("there is CUDA; a test below does it for real")
    vae = small_vae().fit(ROWS)
    codes = vae.transform(ROWS)
    vae.net_.device = "cuda"
    with pytest.warns(DeviceWarning, match="CUDA devices|not available"):
        copied = pickle.loads(pickle.dumps(vae))
    np.testing.assert_array_equal(copied.transform(ROWS), codes)
    assert copied.set_params(device="auto").partial_fit(ROWS).n_iter_ == 4


class PlainNetwork(MLP):
    """The same without compiling."""


class CompiledNetwork(MLP):
    """Networks that torch compiles, here without generating code."""

    def encoder(self, input_shape, n_components):
        return torch.compile(
            super().encoder(input_shape, n_components), backend="eager"
        )

    def decoder(self, n_components, output_shape):
        return torch.compile(
            super().decoder(n_components, output_shape), backend="eager"
        )


# Dynamo looks at attributes that torch warns of.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_networks_may_be_compiled():
    params = {"early_stopping": False, "max_iter": 2}
    # Not MLP itself, which sees coordinates.
    plain = small_vae(network=PlainNetwork((8,)), **params).fit(ROWS)
    compiled = small_vae(network=CompiledNetwork((8,)), **params).fit(ROWS)
    np.testing.assert_allclose(
        compiled.transform(ROWS), plain.transform(ROWS), atol=1e-5
    )
    assert compiled.score(ROWS) == pytest.approx(plain.score(ROWS), abs=1e-3)


# CUDA

gpu = pytest.mark.gpu


def fit_on_cuda(monkeypatch, X, *, captured=True, **params):
    """Fit on CUDA, with or without a graph; return how many were captured, too."""
    graphs = []

    class Counted(cuda_graph.CudaGraph):
        def capture(self, function):
            graphs.append(self)
            super().capture(function)

    with monkeypatch.context() as patch:
        patch.setattr(cuda_graph, "CudaGraph", Counted)
        if not captured:
            patch.setattr(cuda_graph, "can_capture", lambda *args: False)
        vae = small_vae(**{"device": "cuda", "max_iter": 30, **params}).fit(X)
    return vae, len(graphs)


@gpu
@pytest.mark.parametrize(
    "params",
    [
        {},
        {"sigma": "mle"},
        {"sigma": "auto"},
        {"optimizer": "adamw", "noise": "laplace"},
        {"network": Conv((3, 4), hidden_layer_sizes=(8,)), "image_shape": (5, 8)},
        {"prior": MixturePrior(3)},
        {"precision": "bfloat16"},
        {"precision": "tf32", "lr_schedule": "constant"},
    ],
    ids=str,
)
@pytest.mark.parametrize("has_gaps", [False, True])
def test_cuda_graphs_train_like_eager_steps(monkeypatch, params, has_gaps):
    X = low_rank_rows(500, 40).astype(np.float32)
    X = with_gaps(X) if has_gaps else X
    captured, n_graphs = fit_on_cuda(monkeypatch, X, **params)
    assert n_graphs == 1
    eager, n_graphs = fit_on_cuda(monkeypatch, X, captured=False, **params)
    assert n_graphs == 0
    rtol = 1e-2 if params.get("precision") == "bfloat16" else 1e-4
    first = [vae.history_[0, "train_loss"] for vae in (captured, eager)]
    np.testing.assert_allclose(*first, rtol=rtol)
    assert abs(captured.score(X) - eager.score(X)) < 0.5


@gpu
def test_cuda_fits_like_the_cpu(monkeypatch):
    X = low_rank_rows(400)
    on_cpu = small_vae(max_iter=30).fit(X)
    on_cuda, _ = fit_on_cuda(monkeypatch, X)
    assert on_cuda.module_.device.type == "cuda"
    assert abs(on_cuda.score(X) - on_cpu.score(X)) < 0.3
    state = torch.cuda.get_rng_state()
    again, _ = fit_on_cuda(monkeypatch, X)
    assert torch.equal(torch.cuda.get_rng_state(), state)
    np.testing.assert_allclose(again.score(X), on_cuda.score(X), atol=0.1)


ON_EITHER_DEVICE = {
    "transform": lambda vae, X: vae.transform(X),
    "inverse_transform": lambda vae, X: vae.inverse_transform(X[:, :2]),
    "score_samples": lambda vae, X: vae.score_samples(X),
    "importance": lambda vae, X: vae.score_samples(X, n_importance_samples=64),
    "kl_divergence": lambda vae, X: vae.kl_divergence(X),
    "denoise": lambda vae, X: vae.denoise(X, noise_scale=2 * NOISE),
    "denoise, of some scale": lambda vae, X: vae.denoise(X),
    "denoise, by feature": lambda vae, X: vae.denoise(X, noise_scale=NOISE * X[0] ** 2),
    "gaps": lambda vae, X: vae.denoise(np.where(X > 2, np.nan, X)),
    "gaps, transform": lambda vae, X: vae.transform(with_gaps(X)),
    "gaps, score": lambda vae, X: vae.score_samples(with_gaps(X)),
    "gaps, fill": lambda vae, X: SigmaVAEImputer(vae).fit_transform(with_gaps(X)),
    "posterior": lambda vae, X: vae.posterior(X, noise_scale=NOISE)[0],
}


@gpu
@pytest.mark.parametrize("prior", ["normal", MixturePrior(3)], ids=str)
@pytest.mark.parametrize("call", ON_EITHER_DEVICE)
def test_cuda_computes_what_the_cpu_does(call, prior):
    X = low_rank_rows(200)
    found = [
        ON_EITHER_DEVICE[call](vae.fit(X), X)
        for vae in (
            small_vae(device=device, max_iter=0, prior=prior)
            for device in ("cpu", "cuda")
        )
    ]
    np.testing.assert_allclose(*found, atol=2e-3 if "denoise" in call else 1e-4)


@gpu
def test_searches_on_cuda_agree():
    X = low_rank_rows(300)
    found = [
        search(small_vae(device="cuda"), {"sigma": [0.2, 0.4]}, cv=2).fit(X)
        for search in (BatchedGridSearchCV, GridSearchCV)
    ]
    scores = [each.cv_results_["mean_test_score"] for each in found]
    np.testing.assert_allclose(*scores, atol=1e-2)


@gpu
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8, np.uint16])
def test_data_trains_the_same_wherever_it_lies(monkeypatch, dtype):
    X = (40 * (low_rank_rows(300) + 3)).clip(0, 255).astype(dtype)
    resident, _ = fit_on_cuda(monkeypatch, X, sigma=9.0)
    monkeypatch.setattr("sklearn_sigmavae._training.data.fits", lambda *args: False)
    streamed, _ = fit_on_cuda(monkeypatch, X, sigma=9.0)
    first = [vae.history_[0, "train_loss"] for vae in (resident, streamed)]
    np.testing.assert_allclose(*first, rtol=1e-4)


class Losses(Callback):
    """Keeps the losses of the steps of two equal batches."""

    def on_train_begin(self, net, **kwargs):
        step, self.losses = net.run.step, []

        def keep(x, eps):
            loss = step(torch.ones_like(x), torch.zeros_like(eps))
            self.losses.append(loss.item())
            return loss

        net.run.step = keep


@gpu
def test_dropout_draws_anew_at_each_replay(monkeypatch):
    params = {"network": DropoutNetwork(), "learning_rate": 1e-12, "max_iter": 9}
    vae, n_graphs = fit_on_cuda(
        monkeypatch, low_rank_rows(640), callbacks=[Losses()], init="random", **params
    )
    assert n_graphs == 1
    # At a vanishing rate only the masks differ.
    assert len(set(callback_of(vae, Losses).losses[3:])) > 5


@gpu
@pytest.mark.parametrize(
    "change", [halve_rate, decay_weights, freeze, raise_beta, reload_optimizer]
)
def test_graphs_see_what_callbacks_change(monkeypatch, change):
    X = low_rank_rows(500)
    params = {"callbacks": [Changer(change)], "lr_schedule": "constant"}
    captured, n_graphs = fit_on_cuda(monkeypatch, X, max_iter=5, **params)
    assert n_graphs >= 1
    eager, _ = fit_on_cuda(monkeypatch, X, captured=False, max_iter=5, **params)
    np.testing.assert_allclose(
        captured.history_[:, "train_loss"], eager.history_[:, "train_loss"], rtol=1e-3
    )


@gpu
def test_graphs_go_on_from_an_earlier_fit(monkeypatch):
    X = low_rank_rows(500)
    losses = []
    for captured in (True, False):
        params = {"captured": captured, "warm_start": True, "early_stopping": False}
        vae, _ = fit_on_cuda(monkeypatch, X, **params)
        with monkeypatch.context() as patch:
            if not captured:
                patch.setattr(cuda_graph, "can_capture", lambda *args: False)
            losses.append(vae.fit(X).history_[30, "train_loss"])
    np.testing.assert_allclose(*losses, rtol=1e-3)


class Reading(nn.Module):
    """Reads a value back from the device, which no graph can hold."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x) if x.sum().item() < 1e9 else x


class ReadingNetwork(MLP):
    def encoder(self, input_shape, n_components):
        return Reading(super().encoder(input_shape, n_components))


@gpu
def test_a_network_that_reads_values_back_trains_eagerly(monkeypatch):
    with pytest.warns(UserWarning, match="could not be captured"):
        vae, n_graphs = fit_on_cuda(
            monkeypatch, low_rank_rows(300), network=ReadingNetwork((8,))
        )
    # No capture was tried, since torch does not always recover from a failure.
    assert n_graphs == 0
    assert len(vae.history_) == 30


@gpu
def test_float32_convolutions_are_not_rounded(monkeypatch):
    X = low_rank_rows(300, 64).astype(np.float32)
    network = Conv((8, 8), hidden_layer_sizes=(8,))
    vae, _ = fit_on_cuda(monkeypatch, X, network=network, image_shape=(8, 8))
    codes = vae.transform(X)
    vae.module_.cpu()
    expected = vae.transform(X.astype(np.float64))
    # TF32 has eleven bits, so is off by a thousandth.
    np.testing.assert_allclose(codes, expected, atol=2e-5)


@gpu
def test_too_little_memory_on_cuda(monkeypatch):
    X = np.zeros((40_000, 500), dtype=np.float32)
    X[::2] = 1
    network = MLP((20_000,))
    vae, _ = fit_on_cuda(monkeypatch, X[:200], network=network, max_iter=0)
    expected = vae.transform(X[:200])
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    in_use = torch.cuda.memory_reserved()
    # A block of 2**24 numbers takes 67 MB, and its activation as much again.
    torch.cuda.set_per_process_memory_fraction((in_use + 1e8) / total)
    try:
        np.testing.assert_allclose(vae.transform(X)[:200], expected, atol=1e-5)
        torch.cuda.set_per_process_memory_fraction((in_use + 6e8) / total)
        large = small_vae(
            device="cuda", network=network, batch_size=40_000, early_stopping=False
        )
        with pytest.raises(MemoryError, match=r"batch_size=40000.*Tried to allocate"):
            large.fit(X)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@gpu
def test_a_model_fitted_on_cuda_goes_anywhere(monkeypatch, tmp_path):
    X = low_rank_rows(300)
    vae, _ = fit_on_cuda(monkeypatch, X)
    path = tmp_path / "vae.pickle"
    path.write_bytes(pickle.dumps(vae))
    copied = pickle.loads(path.read_bytes())
    np.testing.assert_allclose(copied.transform(X), vae.transform(X))
    copied.partial_fit(X)
    copied.set_params(device="cpu").partial_fit(X)
    assert copied.module_.device.type == "cpu"
    np.save(tmp_path / "X.npy", X)
    script = (
        "import pickle, sys, warnings, numpy as np\n"
        "warnings.simplefilter('ignore')\n"
        "vae = pickle.load(open(sys.argv[1], 'rb'))\n"
        "np.save(sys.argv[3], vae.transform(np.load(sys.argv[2])))\n"
        "vae.set_params(device='auto').partial_fit(np.load(sys.argv[2]))\n"
    )
    paths = [str(tmp_path / name) for name in ("vae.pickle", "X.npy", "codes.npy")]
    subprocess.run(
        [sys.executable, "-c", script, *paths],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        check=True,
    )
    codes = np.load(tmp_path / "codes.npy")
    np.testing.assert_allclose(codes, vae.transform(X), atol=1e-4)
