"""The number of threads: what a step deserves, never above the user's, put back."""

import os
import threading

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback
from small_vae import low_rank_rows, small_vae
from torch import nn

from sklearn_sigmavae import BatchedGridSearchCV, SigmaVAE
from sklearn_sigmavae._threads import (
    OPERATIONS_PER_THREAD,
    count_operations,
    limited_threads,
)
from sklearn_sigmavae.networks import MLP, Conv

X = low_rank_rows(60)


@pytest.fixture(autouse=True)
def four_threads():
    """The user allows four."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    assert torch.get_num_threads() == 4
    torch.set_num_threads(before)


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


def test_operations_are_those_of_the_products():
    vae = small_vae(hidden_layer_sizes=(8,)).fit(X)
    # Linear paths and networks, encoder and decoder: 5 features, 2 components.
    products = (5 * 2 + 5 * 8 + 8 * 4) + (2 * 5 + 2 * 8 + 8 * 5)
    assert count_operations(vae.module_) == 2 * products


def test_operations_of_convolutions():
    images = np.random.default_rng(0).normal(size=(20, 8, 8))
    network = Conv(channels=(3,), hidden_layer_sizes=())
    vae = small_vae(network=network, linear_path=False, init="random").fit(images)
    # One channel to three of 4 x 4 pixels by 3 x 3 filters, then 48 numbers to 4.
    encoder = 48 * 9 + 48 * 4
    # Two numbers to 48, each of which meets the 3 x 3 weights of one channel.
    decoder = 2 * 48 + 48 * 9
    assert count_operations(vae.module_) == 2 * (encoder + decoder)


def training_threads(width, batch_size):
    """Threads in the training steps of a network, and what they should be."""
    vae = small_vae(network=SpiedMLP((width, width)), batch_size=batch_size, max_iter=1)
    rows = low_rank_rows(600, 20)
    seen = seen_in(lambda: vae.fit(rows))
    step = vae.module_.n_operations * batch_size
    return seen, min(4, max(1, int(step / OPERATIONS_PER_THREAD)))


@pytest.mark.parametrize(
    ("width", "batch_size", "n_threads"), [(8, 16, 1), (256, 400, 2), (512, 600, 4)]
)
def test_training_steps_have_the_threads_that_they_deserve(
    width, batch_size, n_threads
):
    seen, expected = training_threads(width, batch_size)
    assert expected == n_threads
    assert expected in seen
    # Before it is known what a step takes, networks are tried on two rows.
    assert seen <= {expected, 4, 1}


@pytest.mark.parametrize(
    "call",
    [
        lambda vae: vae.transform(X),
        lambda vae: vae.score(X),
        lambda vae: vae.sample(3),
        lambda vae: vae.denoise(X, noise_scale=1.0),
        lambda vae: vae.posterior(X, noise_scale=1.0),
        lambda vae: vae.estimate_noise_scale(X),
        lambda vae: vae.fit(X),
        lambda vae: vae.partial_fit(X),
    ],
    ids=[
        "transform",
        "score",
        "sample",
        "denoise",
        "posterior",
        "estimate_noise_scale",
        "fit",
        "partial_fit",
    ],
)
def test_small_calls_take_one_thread(call):
    vae = small_vae(network=SpiedMLP((8,))).fit(X)
    vae.module_.n_operations  # noqa: B018, it is counted at the first call
    seen = seen_in(lambda: call(vae))
    assert 1 in seen
    # A fit tries its networks before the threads are limited.
    assert seen <= {1, 4}


def test_large_blocks_take_more():
    vae = small_vae(network=SpiedMLP((512, 512))).fit(X)
    assert 4 in seen_in(lambda: vae.score_samples(low_rank_rows(2000)))


def test_never_more_than_the_user_allows():
    torch.set_num_threads(2)
    try:
        seen, _ = training_threads(512, 600)
        assert max(seen) == 2
    finally:
        torch.set_num_threads(4)


class Fails(Callback):
    """Fails in the first epoch."""

    def on_epoch_end(self, net, **kwargs):
        assert torch.get_num_threads() == 1
        raise RuntimeError("on purpose")


def test_what_fails_puts_the_number_back():
    with pytest.raises(RuntimeError, match="on purpose"):
        small_vae(callbacks=[Fails()]).fit(X)
    assert torch.get_num_threads() == 4


def test_searches_put_the_number_back():
    search = BatchedGridSearchCV(small_vae(max_iter=1), {"sigma": [0.3, 0.4]}, cv=2)
    search.fit(X)
    assert torch.get_num_threads() == 4


def test_contexts_inside_each_other_put_back_what_they_found():
    with limited_threads(1, "cpu"):
        assert torch.get_num_threads() == 1
        with limited_threads(1e12, "cpu"):
            assert torch.get_num_threads() == 4
        assert torch.get_num_threads() == 1


def test_calls_in_several_threads_leave_the_number_that_the_user_set():
    """A call does not take the number that another one has set for the user's."""
    inside, leave, found = threading.Event(), threading.Event(), []

    def first():
        with limited_threads(1, "cpu"):
            inside.set()
            leave.wait(10)

    def second():
        with limited_threads(1e12, "cpu"):
            found.append(torch.get_num_threads())
            leave.set()
            one.join()
        found.append(torch.get_num_threads())

    one, two = threading.Thread(target=first), threading.Thread(target=second)
    one.start()
    inside.wait(10)
    two.start()
    two.join()
    assert found == [4, 4]
    after = []
    later = threading.Thread(target=lambda: after.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert after == [4]


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


def test_results_do_not_depend_on_the_rule():
    codes = SigmaVAE(2, sigma=0.3, max_iter=2, random_state=0).fit_transform(X)
    torch.set_num_threads(1)
    try:
        alone = SigmaVAE(2, sigma=0.3, max_iter=2, random_state=0).fit_transform(X)
    finally:
        torch.set_num_threads(4)
    # One thread in both.
    assert np.array_equal(codes, alone)
