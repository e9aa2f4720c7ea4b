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
from small_vae import Unchanged, low_rank_rows, small_vae, weights

from sklearn_sigmavae import BatchedGridSearchCV, SigmaVAE, sigma_path

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

GRID = {"sigma": [0.2, 0.3]}
SEARCHES = {
    "batched search": (BatchedGridSearchCV, 1),
    "batched search, 2 jobs": (BatchedGridSearchCV, 2),
    "search, 2 jobs": (GridSearchCV, 2),
}
# The longest that Ctrl-C is waited with, in which each gets under way.
KINDS = {"fit": 0.5, "denoise": 0.5, "batched search": 1.0}
KINDS |= {"batched search, 2 jobs": 8.0, "search, 2 jobs": 8.0}


def search_of(kind, vae):
    cls, n_jobs = SEARCHES[kind]
    return cls(vae, GRID, cv=2, n_jobs=n_jobs)


def unending(kind):
    """Work without an end, and the estimators that it must not change."""
    vae = small_vae().fit(X)
    if kind == "denoise":
        return lambda: vae.denoise(X, noise_scale=1.0, max_iter=FOREVER, tol=0), [vae]
    vae.set_params(max_iter=FOREVER)
    if kind == "fit":
        return lambda: vae.fit(X), [vae]
    search = search_of(kind, vae)
    # scikit-learn's own search notes its splits before it begins.
    ours = isinstance(search, BatchedGridSearchCV)
    return lambda: search.fit(X), [vae, search] if ours else [vae]


def interrupt(work, delay):
    """Press Ctrl-C after a while; return the seconds until that has ended the work.

    And the processes that were at work.
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
    assert len(pressed) == 1
    return seconds, workers


def press_ctrl_c(n_trials):
    """Press Ctrl-C at random instants of several kinds of work."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    rng, trials, workers = np.random.default_rng(0), [], set()
    for i in range(int(n_trials)):
        kind = list(KINDS)[i % len(KINDS)]
        work, estimators = unending(kind)
        states = [Unchanged(estimator) for estimator in estimators]
        seconds, pids = interrupt(work, rng.uniform(0, KINDS[kind]))
        for state in states:
            state.check()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        trials.append([kind, seconds])
        workers.update(pids)
    small_vae().fit(X)
    return trials, sorted(workers)


@pytest.mark.parametrize(
    "n_trials", [len(KINDS), pytest.param(50, marks=pytest.mark.slow)]
)
def test_ctrl_c_ends_all_kinds_of_work_and_changes_nothing(n_trials):
    psutil = pytest.importorskip("psutil")
    trials, workers = in_child("press_ctrl_c", n_trials, timeout=60 + 20 * n_trials)
    for kind in KINDS:
        print(f"{kind:25} {max(s for k, s in trials if k == kind):.3f} s at most")
    assert len(trials) == n_trials
    assert all(seconds < 2 for _, seconds in trials)
    end = time.monotonic() + 20
    while any(map(psutil.pid_exists, workers)) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(map(psutil.pid_exists, workers))


# Dead workers


@contextmanager
def a_worker_dies():
    """Kill a worker of joblib's while the block runs."""
    psutil = pytest.importorskip("psutil")
    ended = threading.Event()

    def kill():
        while not ended.wait(0.2):
            for child in psutil.Process().children():
                if "popen_loky" in " ".join(child.cmdline()):
                    ended.wait(1)
                    child.kill()
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
    search = search_of(kind, small_vae(max_iter=FOREVER))
    with a_worker_dies(), pytest.raises(BrokenProcessPool):
        search.fit(X)
    assert not hasattr(search, "cv_results_")
    assert not hasattr(search.estimator, "net_")
    search.set_params(estimator__max_iter=1).fit(X)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


# Callbacks

HOOKS = [
    *("on_train_begin", "on_epoch_begin", "on_batch_begin", "on_grad_computed"),
    *("on_batch_end", "on_epoch_end", "on_train_end"),
]


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_a_callback_may_fail_in_any_hook(hook, method):
    def fail(self, net, *args, **kwargs):
        raise ZeroDivisionError(hook)

    broken = type("Broken", (Callback,), {hook: fail})()
    vae = small_vae().fit(X).set_params(callbacks=[broken])
    with Unchanged(vae), pytest.raises(ZeroDivisionError, match=hook):
        getattr(vae, method)(X)
    getattr(vae.set_params(callbacks=None), method)(X)
    assert vae.n_iter_ == (3 if method == "fit" else 4)


# Threads


def results_of(vae):
    """Results of inference, as bytes."""
    arrays = (
        vae.transform(X),
        vae.score_samples(X.astype(np.float32)),
        vae.denoise(X[:9], noise_scale=1.0, max_iter=3),
    )
    return b"".join(array.tobytes() for array in arrays)


@pytest.mark.parametrize(
    ("call", "n_calls"),
    [
        (results_of, 5),
        pytest.param(results_of, 200, marks=pytest.mark.slow),
        pytest.param(
            lambda vae: vae.transform(X).tobytes(), 1000, marks=pytest.mark.slow
        ),
    ],
    ids=["all", "all", "transform"],
)
def test_eight_threads_share_an_estimator(vae, call, n_calls):
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda _: call(vae), range(8 * n_calls))
        assert set(found) == {call(vae)}


# Forks


def try_in_fork(call, timeout=30):
    """What a call in a forked process gives: its result, its error or "it hangs"."""
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
    rows = low_rank_rows(2000, 50)
    vae = small_vae(hidden_layer_sizes=(256, 256), batch_size=1000, max_iter=1)
    expected = vae.fit(rows).transform(rows)
    search = BatchedGridSearchCV(vae, {"sigma": [0.5, 1.0]}, cv=2, refit=False)

    def error_of(call):
        return try_in_fork(lambda: float(np.abs(call(rows) - expected).max()))

    return {
        "transform": error_of(vae.transform),
        "fit": error_of(vae.fit_transform),
        "denoise": try_in_fork(
            lambda: vae.denoise(rows, noise_scale=1.0, max_iter=1).shape == rows.shape
        ),
        "loaded": error_of(
            lambda rows: vae.__setstate__(vae.__getstate__()) or vae.transform(rows)
        ),
        "path": try_in_fork(
            lambda: len(sigma_path(rows, [1.0, 0.5], estimator=vae, max_iter=1).kl)
        ),
        "search": try_in_fork(lambda: search.fit(rows).n_splits_),
    }


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux")
def test_a_process_forked_after_threads_computes():
    found = in_child("fork_after_threads", timeout=240)
    assert found["transform"] == pytest.approx(0, abs=1e-9)
    assert found["fit"] == pytest.approx(0, abs=1e-4)
    assert found["denoise"] is True
    assert found["loaded"] == pytest.approx(0, abs=1e-9)
    assert (found["path"], found["search"]) == (2, 2)


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


@pytest.mark.parametrize("n_fits", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_fits_of_one_seed_have_one_digest(n_fits):
    def digest():
        vae = small_vae(hidden_layer_sizes=(256, 256), n_components=4).fit(X)
        values = (value.numpy().tobytes() for value in weights(vae).values())
        return hashlib.sha256(b"".join(values)).hexdigest()

    assert len({digest() for _ in range(n_fits)}) == 1


@pytest.mark.parametrize(("dtype", "atol"), [("float32", 1e-5), ("float64", 1e-9)])
def test_codes_do_not_depend_on_how_many_rows_are_transformed(digits, dtype, atol):
    rows = digits.astype(dtype)
    params = {"hidden_layer_sizes": (512, 512), "max_iter": 1, "device": "cpu"}
    vae = SigmaVAE(16, sigma=0.2, random_state=0, **params).fit(rows)
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
    for seed in range(10):
        small_vae(random_state=seed).fit(X).transform(X)
    assert all(np.array(count_handles(process)) <= before)


@pytest.mark.slow
def test_two_hundred_fits_take_no_more_memory():
    pytest.importorskip("psutil")
    found = np.array(in_child("fit_many_times", 200, timeout=900))
    rss, handles = found[20:, 0], found[20:, 1:]
    slope = np.polyfit(np.arange(len(rss)), rss, 1)[0]
    print(f"\n{slope:.4f} MiB a fit, from {rss[0]:.1f} to {rss[-1]:.1f} MiB")
    assert slope < 0.1
    assert (handles.max(axis=0) <= handles[0]).all()


if __name__ == "__main__":
    _, function, *arguments = sys.argv
    print(json.dumps(globals()[function](*arguments)))
