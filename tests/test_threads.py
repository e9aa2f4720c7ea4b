"""The number of threads: what a step deserves, never above the user's, put back."""

import os
import threading

import numpy as np
import pytest
import torch
from small_vae import Raiser, low_rank_rows, small_vae
from torch import nn

from sklearn_sigmavae import BatchedGridSearchCV, SigmaVAE
from sklearn_sigmavae._model.settings import OPERATIONS_PER_THREAD, limited_threads
from sklearn_sigmavae.networks import MLP, Conv

X = low_rank_rows(60)


@pytest.fixture(autouse=True)
def four_threads():
    """Check that a test in which the user allows four threads leaves them at four."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    after = torch.get_num_threads()
    torch.set_num_threads(before)
    assert after == 4


class Spy(nn.Module):
    """Notes the number of threads whenever data passes."""

    seen = []

    def forward(self, x):
        Spy.seen.append(torch.get_num_threads())
        return x


class SpiedMLP(MLP):
    """Recipe whose encoder and decoder note the number of threads."""

    def encoder(self, input_shape, n_components):
        return nn.Sequential(Spy(), *super().encoder(input_shape, n_components))

    def decoder(self, n_components, output_shape):
        return nn.Sequential(Spy(), *super().decoder(n_components, output_shape))


def seen_in(call):
    """Numbers of threads in a call."""
    Spy.seen.clear()
    call()
    return set(Spy.seen)


def training_threads(width, batch_size):
    """Numbers of threads in a fit, and the operations of one of its steps."""
    vae = small_vae(network=SpiedMLP((width, width)), batch_size=batch_size, max_iter=1)
    seen = seen_in(lambda: vae.fit(low_rank_rows(600, 20)))
    return seen, vae.module_.n_operations * batch_size


def test_operations_are_those_of_matrix_products_and_convolutions():
    vae = small_vae(hidden_layer_sizes=(8,)).fit(X)
    # Linear paths and networks, encoder and decoder: 5 features, 2 components.
    products = (5 * 2 + 5 * 8 + 8 * 4) + (2 * 5 + 2 * 8 + 8 * 5)
    assert vae.module_.n_operations == 2 * products

    images = np.random.default_rng(0).normal(size=(20, 8, 8))
    network = Conv(channels=(3,), hidden_layer_sizes=())
    vae = small_vae(network=network, linear_path=False, init="random").fit(images)
    # One channel to three of 4 x 4 pixels by 3 x 3 filters, then 48 numbers to 4.
    encoder = 48 * 9 + 48 * 4
    # Two numbers to 48, each of which meets the 3 x 3 weights of one channel.
    decoder = 2 * 48 + 48 * 9
    assert vae.module_.n_operations == 2 * (encoder + decoder)


@pytest.mark.parametrize(
    ("width", "batch_size", "n_threads"), [(8, 16, 1), (256, 400, 2), (512, 600, 4)]
)
def test_training_steps_have_the_threads_that_they_deserve(
    width, batch_size, n_threads
):
    seen, n_operations = training_threads(width, batch_size)
    assert min(4, max(1, int(n_operations / OPERATIONS_PER_THREAD))) == n_threads
    assert n_threads in seen
    # Before it is known what a step takes, networks are tried on two rows.
    assert seen <= {n_threads, 1}
    # Never more than the user allows.
    torch.set_num_threads(2)
    seen, _ = training_threads(width, batch_size)
    assert max(seen) == min(n_threads, 2)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(4)


@pytest.mark.parametrize(
    "call",
    [
        lambda vae: vae.transform(X),
        lambda vae: vae.score(X),
        lambda vae: vae.sample(3),
        lambda vae: vae.denoise(X, noise_scale=1.0),
        lambda vae: vae.posterior(X, noise_scale=1.0),
        lambda vae: vae.estimate_noise_scale(X),
        lambda vae: vae.partial_fit(X),
    ],
)
def test_small_calls_take_one_thread(call):
    # The first call counts the operations, in all threads.
    vae = small_vae(network=SpiedMLP((8,))).fit(X).partial_fit(X)
    vae.transform(X)
    seen = seen_in(lambda: call(vae))
    assert 1 in seen
    # Training tries its networks before the threads are limited.
    assert seen <= {1, 4}


def test_large_blocks_take_more_threads():
    vae = small_vae(network=SpiedMLP((512, 512))).fit(X)
    assert 4 in seen_in(lambda: vae.score_samples(low_rank_rows(500)))


def test_searches_and_failures_put_the_number_back():
    with pytest.raises(RuntimeError, match="on purpose"):
        small_vae(callbacks=[Raiser(RuntimeError("on purpose"))]).fit(X)
    assert torch.get_num_threads() == 4
    BatchedGridSearchCV(small_vae(max_iter=1), {"sigma": [0.3, 0.4]}, cv=2).fit(X)
    assert torch.get_num_threads() == 4


def test_a_call_does_not_take_the_number_of_another_one_for_the_user_s():
    inside, leave, found = threading.Event(), threading.Event(), []

    def first():
        with limited_threads(1, "cpu"):
            with limited_threads(1e12, "cpu"):
                found.append(torch.get_num_threads())
            found.append(torch.get_num_threads())
            inside.set()
            leave.wait(10)

    def second():
        inside.wait(10)
        with limited_threads(1e12, "cpu"):
            found.append(torch.get_num_threads())
            leave.set()
            threads[0].join()
        found.append(torch.get_num_threads())

    def later():
        threads[1].join()
        found.append(torch.get_num_threads())

    threads = [threading.Thread(target=target) for target in (first, second, later)]
    for thread in threads:
        thread.start()
    threads[-1].join()
    assert found == [4, 1, 4, 4, 4]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_computes_with_one_thread_and_keeps_it():
    vae = small_vae().fit(X)
    reader, writer = os.pipe()
    with limited_threads(1, "cpu"):
        child = os.fork()
        if not child:
            vae.transform(X)
            os.write(writer, str(torch.get_num_threads()).encode())
            os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 10) == b"1"
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize(
    ("params", "rows", "atol"),
    [
        # A small fit takes one thread in any case.
        ({"sigma": 0.3}, X, 0),
        ({"n_components": 8, "hidden_layer_sizes": (512, 512)}, None, 1e-4),
    ],
    ids=["small", "large"],
)
def test_the_number_of_threads_hardly_matters(digits, params, rows, atol):
    rows = digits[:600] if rows is None else rows
    codes = []
    for n_threads in (1, 4):
        torch.set_num_threads(n_threads)
        params = {"n_components": 2, "sigma": 0.2, "max_iter": 2} | params
        codes.append(SigmaVAE(**params, random_state=0).fit_transform(rows))
    np.testing.assert_allclose(codes[0], codes[1], rtol=0, atol=atol)
