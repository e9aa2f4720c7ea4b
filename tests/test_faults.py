"""Ctrl-C, dead workers, failing callbacks, threads, forks, and leaks.

What must not happen to the process of the tests happens in a child, for which this file
is a script: ``python test_faults.py NAME ARGUMENTS`` prints what was found, as JSON.
"""

import gc
import hashlib
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from joblib.externals.loky.process_executor import BrokenProcessPool
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from skorch.callbacks import Callback
from small_vae import low_rank_rows, same_weights, small_vae, weights

from sklearn_sigmavae import BatchedGridSearchCV, SigmaVAE

X = low_rank_rows()
FOREVER = 10**7


def in_child(name, *arguments, timeout):
    """What a function of this file finds in a process of its own."""
    child = subprocess.Popen(
        [sys.executable, __file__, name, *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = child.communicate(timeout=timeout)
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    assert child.returncode == 0, output
    return json.loads(output.splitlines()[-1])


# Ctrl-C

SEARCHES = {
    "batched search": lambda vae: BatchedGridSearchCV(vae, {"sigma": [0.2, 0.3]}, cv=2),
    "batched search, 2 jobs": lambda vae: BatchedGridSearchCV(
        vae, {"sigma": [0.2, 0.3]}, cv=2, n_jobs=2
    ),
    "search, 2 jobs": lambda vae: GridSearchCV(vae, {"sigma": [0.2, 0.3]}, n_jobs=2),
}
# How long each takes to get under way, at most.
KINDS = {"fit": 0.5, "denoise": 0.5, "batched search": 1.0}
KINDS |= {"batched search, 2 jobs": 8.0, "search, 2 jobs": 8.0}


def unending(kind):
    """Work without an end, and the estimator that it must not change."""
    vae = small_vae().fit(X)
    if kind == "denoise":
        return lambda: vae.denoise(X, noise_scale=1.0, max_iter=FOREVER, tol=0), vae
    vae.set_params(max_iter=FOREVER)
    worker = SEARCHES[kind](vae) if kind in SEARCHES else vae
    # scikit-learn's own search notes its splits before it begins.
    ours = not isinstance(worker, GridSearchCV) or "batched" in kind
    return lambda: worker.fit(X), worker if ours else vae


def interrupt(work, delay):
    """Press Ctrl-C after a while; return the seconds until that has ended the work.

    None if it took more than one, and the processes that were at work.
    """
    import psutil

    pressed, workers, ended = [], [], threading.Event()

    def press():
        ended.wait(delay)
        while not ended.is_set():
            children = psutil.Process().children(recursive=True)
            workers.extend(child.pid for child in children)
            pressed.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGINT)
            ended.wait(10)

    thread = threading.Thread(target=press)
    thread.start()
    try:
        work()
    except KeyboardInterrupt:
        seconds = time.monotonic() - pressed[0]
    finally:
        ended.set()
        thread.join()
    return (seconds if len(pressed) == 1 else None), workers


def press_ctrl_c(n_trials, seed):
    """Press Ctrl-C at random instants of several kinds of work."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    rng, trials, workers = np.random.default_rng(int(seed)), [], set()
    for i in range(int(n_trials)):
        kind = list(KINDS)[i % len(KINDS)]
        work, worker = unending(kind)
        before = vars(worker).copy()
        fitted = worker if hasattr(worker, "net_") else worker.estimator
        weights_before = weights(fitted)
        delay = rng.uniform(0, KINDS[kind])
        seconds, pids = interrupt(work, delay)
        workers.update(pids)
        unchanged = (
            vars(worker).keys() == before.keys()
            and all(vars(worker)[name] is value for name, value in before.items())
            and same_weights(weights(fitted), weights_before)
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        )
        trials.append([kind, round(delay, 2), seconds, unchanged])
    again = same_weights(weights(small_vae().fit(X)), weights(small_vae().fit(X)))
    return {"trials": trials, "workers": sorted(workers), "works": again}


def check_ctrl_c(n_trials, timeout):
    psutil = pytest.importorskip("psutil")
    found = in_child("press_ctrl_c", n_trials, 0, timeout=timeout)
    trials = found["trials"]
    delays = [seconds for _, _, seconds, _ in trials if seconds is not None]
    print(
        f"\n{len(delays)} of {len(trials)} propagated at once, the slowest of them in"
    )
    for kind in KINDS:
        slowest = max((s for k, _, s, _ in trials if k == kind and s), default=0)
        print(f"  {kind:25} {slowest:.3f} s")
    assert len(trials) == n_trials
    assert all(seconds is not None and seconds < 2 for _, _, seconds, _ in trials)
    assert all(unchanged for *_, unchanged in trials)
    assert found["works"]
    end = time.monotonic() + 20
    left = found["workers"]
    while left and time.monotonic() < end:
        time.sleep(0.1)
        left = [pid for pid in left if psutil.pid_exists(pid)]
    assert not left


def test_ctrl_c_ends_all_kinds_of_work_and_changes_nothing():
    check_ctrl_c(len(KINDS), timeout=180)


@pytest.mark.slow
def test_ctrl_c_at_fifty_instants():
    check_ctrl_c(50, timeout=900)


# Dead workers


@contextmanager
def a_worker_dies():
    """Kill a worker of joblib's while the block runs."""
    psutil = pytest.importorskip("psutil")
    ended = threading.Event()

    def workers():
        children = psutil.Process().children()
        return [
            child for child in children if "popen_loky" in " ".join(child.cmdline())
        ]

    def kill():
        while not ended.wait(0.2):
            if found := workers():
                ended.wait(1)
                found[0].kill()
                return

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@pytest.mark.parametrize(
    "kind",
    ["batched search, 2 jobs", pytest.param("search, 2 jobs", marks=pytest.mark.slow)],
)
@pytest.mark.filterwarnings("ignore:A worker stopped while some jobs:UserWarning")
def test_a_search_whose_worker_is_killed_fails_and_the_next_one_works(kind):
    search = SEARCHES[kind](small_vae(max_iter=FOREVER))
    with a_worker_dies(), pytest.raises(BrokenProcessPool):
        search.fit(X)
    assert not hasattr(search, "cv_results_")
    assert not hasattr(search.estimator, "net_")
    search.set_params(estimator__max_iter=1).fit(X)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


# Callbacks


@pytest.mark.parametrize(
    "hook",
    [
        *("on_train_begin", "on_epoch_begin", "on_batch_begin", "on_grad_computed"),
        *("on_batch_end", "on_epoch_end", "on_train_end"),
    ],
)
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_a_callback_may_fail_in_any_hook(hook, method):
    def fail(self, net, *args, **kwargs):
        raise ZeroDivisionError(hook)

    broken = type("Broken", (Callback,), {hook: fail})()
    vae = small_vae().fit(X)
    net, before = vae.net_, weights(vae)
    vae.set_params(callbacks=[broken])
    with pytest.raises(ZeroDivisionError, match=hook):
        getattr(vae, method)(X)
    assert vae.net_ is net
    assert same_weights(weights(vae), before)
    getattr(vae.set_params(callbacks=None), method)(X)
    assert vae.n_iter_ == (3 if method == "fit" else 4)


# Threads


def results_of(vae):
    """All that inference says, as bytes."""
    arrays = (
        vae.transform(X),
        vae.score_samples(X.astype(np.float32)),
        vae.denoise(X[:9], noise_scale=1.0, max_iter=3),
    )
    return b"".join(array.tobytes() for array in arrays)


@pytest.mark.parametrize(
    ("n_threads", "n_calls"),
    [(2, 10), (8, 5), pytest.param(8, 200, marks=pytest.mark.slow)],
)
def test_threads_share_an_estimator(vae, n_threads, n_calls):
    expected = results_of(vae)
    with ThreadPoolExecutor(n_threads) as pool:
        found = pool.map(lambda _: results_of(vae), range(n_threads * n_calls))
        assert set(found) == {expected}


@pytest.mark.slow
def test_eight_threads_transform_a_thousand_times_each(vae):
    expected = vae.transform(X)

    def transform(_):
        return all(np.array_equal(vae.transform(X), expected) for _ in range(1000))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(transform, range(8)))


# Forks


def try_in_fork(call, timeout=30):
    """What a call says in a forked process: its result, its error or "it hangs"."""
    here, there = multiprocessing.Pipe()

    def run():
        try:
            there.send(call())
        except Exception as error:
            there.send(f"{type(error).__name__}: {error}")

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    found = here.recv() if here.poll(timeout) else "it hangs"
    process.kill()
    process.join()
    return found


def fork_after_threads():
    """Fork a process in which torch has computed with two threads."""
    torch.set_num_threads(2)
    rows = low_rank_rows(4000, 50)
    vae = small_vae(hidden_layer_sizes=(512, 512), batch_size=1000, max_iter=1)
    expected = vae.fit(rows).transform(rows)
    return {
        "transform": try_in_fork(
            lambda: float(np.abs(vae.transform(rows) - expected).max())
        ),
        "denoise": try_in_fork(
            lambda: vae.denoise(rows, noise_scale=1.0, max_iter=1).shape == rows.shape
        ),
        "fit": try_in_fork(
            lambda: float(np.abs(vae.fit(rows).transform(rows) - expected).max())
        ),
    }


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux")
def test_a_process_forked_after_threads_computes():
    found = in_child("fork_after_threads", timeout=240)
    assert found["transform"] == pytest.approx(0, abs=1e-9)
    assert found["denoise"] is True
    assert found["fit"] == pytest.approx(0, abs=1e-4)


def fork_after_cuda():
    """Fork a process that has computed on CUDA."""
    vae = small_vae(device="cuda").fit(X)
    return {
        "transform": try_in_fork(lambda: vae.transform(X).tolist()),
        "fit": try_in_fork(lambda: vae.fit(X).n_iter_),
    }


@pytest.mark.gpu
@pytest.mark.parametrize("call", ["transform", "fit"])
def test_a_process_forked_after_cuda_says_what_is_wrong(call):
    found = in_child("fork_after_cuda", timeout=240)
    assert "fork" in str(found[call])


# Determinism


def digest(vae):
    values = (value.numpy().tobytes() for value in weights(vae).values())
    return hashlib.sha256(b"".join(values)).hexdigest()


@pytest.mark.parametrize("n_fits", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_fits_of_one_seed_have_one_digest(n_fits):
    params = {"hidden_layer_sizes": (256, 256), "n_components": 4}
    assert len({digest(small_vae(**params).fit(X)) for _ in range(n_fits)}) == 1


@pytest.fixture
def set_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_the_number_of_threads_hardly_matters(set_threads, digits):
    codes = []
    for n_threads in (1, 2):
        set_threads(n_threads)
        vae = SigmaVAE(8, sigma=0.2, max_iter=3, random_state=0, device="cpu")
        codes.append(vae.fit(digits[:600]).transform(digits))
    np.testing.assert_allclose(codes[0], codes[1], atol=1e-4)


@pytest.mark.parametrize("width", [256, 512])
@pytest.mark.parametrize(("dtype", "atol"), [("float32", 1e-5), ("float64", 1e-9)])
def test_codes_do_not_depend_on_how_many_rows_are_transformed(
    digits, width, dtype, atol
):
    sizes = width, width
    vae = SigmaVAE(16, sigma=0.2, hidden_layer_sizes=sizes, max_iter=1, device="cpu")
    rows = digits.astype(dtype)
    vae.set_params(random_state=0).fit(rows)
    expected = vae.transform(rows)
    for step in (1, 7, 256):
        few = rows[: 100 * step]
        blocks = [vae.transform(few[i : i + step]) for i in range(0, len(few), step)]
        found = np.concatenate(blocks)
        np.testing.assert_allclose(found, expected[: len(few)], rtol=0, atol=atol)


# Leaks


def count_handles(process):
    return process.num_threads(), process.num_fds(), len(process.children())


def fit_many_times(n_fits):
    """Memory, threads and open files after each of many fits."""
    import psutil

    process = psutil.Process()
    rows = load_digits().data[:500]
    found = []
    for seed in range(int(n_fits)):
        vae = SigmaVAE(8, sigma=2.0, max_iter=3, random_state=seed, device="cpu")
        vae.fit(rows).score(rows)
        vae.denoise(rows[:50], noise_scale=4.0, max_iter=5)
        pickle.loads(pickle.dumps(vae)).transform(rows)
        # torch.load leaves cycles, which Python frees when it sees fit.
        gc.collect()
        found.append([process.memory_info().rss / 2**20, *count_handles(process)])
    return found


def test_fits_leave_no_thread_and_no_file():
    psutil = pytest.importorskip("psutil")
    process = psutil.Process()
    small_vae().fit(X).transform(X)
    before = count_handles(process)
    for seed in range(20):
        small_vae(random_state=seed).fit(X).transform(X)
    assert all(np.array(count_handles(process)) <= before)


@pytest.mark.slow
def test_two_hundred_fits_take_no_more_memory():
    pytest.importorskip("psutil")
    found = np.array(in_child("fit_many_times", 200, timeout=900))
    rss, handles = found[20:, 0], found[20:, 1:]
    slope = np.polyfit(np.arange(len(rss)), rss, 1)[0]
    print(
        f"\n{slope:.4f} MiB a fit, from {rss[0]:.1f} to {rss[-1]:.1f} MiB; threads, "
        f"files and children from {handles[0]} to {handles[-1]}"
    )
    assert slope < 0.1
    assert (handles.max(axis=0) <= handles[0]).all()


if __name__ == "__main__":
    _, function, *arguments = sys.argv
    print(json.dumps(globals()[function](*arguments)))
