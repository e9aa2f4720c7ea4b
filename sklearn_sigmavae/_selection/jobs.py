"""Jobs in processes or in threads, with one progress bar."""

from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from threading import Lock

from joblib import Parallel, delayed, effective_n_jobs
from joblib.parallel import get_active_backend
from sklearn import config_context, get_config

from .._model.settings import shared_threads
from .._training.callbacks import progress

THREAD_NAME = "sigma-vae-search"


def run_jobs(
    function,
    jobs,
    n_epochs,
    *,
    n_jobs,
    verbose,
    description,
    pre_dispatch="2*n_jobs",
    n_threads=1,
):
    """Results of a function of each job's arguments and a bar or None.

    With several threads of this process `n_jobs` does not matter.
    """
    with progress(sum(n_epochs), verbose, description) as bar:
        if n_threads > 1:
            numbered = _in_threads(function, jobs, n_threads, bar)
        else:
            numbered = _in_processes(
                function, jobs, bar, n_jobs=n_jobs, pre_dispatch=pre_dispatch
            )
        results, done = [None] * len(jobs), 0
        with closing(numbered):
            for i, result in numbered:
                results[i] = result
                done += n_epochs[i]
                if bar is not None:
                    # Includes epochs in other processes, and those that were skipped.
                    bar.update(max(0, done - bar.n))
    return results


def _in_processes(function, jobs, bar, **params):
    """Numbers of jobs and results, in the order of completion if there is a bar."""
    backend, _ = get_active_backend()
    unordered = bar is not None and backend.supports_return_generator
    parallel = Parallel(
        return_as="generator_unordered" if unordered else "list", **params
    )
    seen = bar if effective_n_jobs(params["n_jobs"]) == 1 else None
    yield from parallel(
        delayed(_numbered)(i, function, *job, seen) for i, job in enumerate(jobs)
    )


# Large arguments stay arguments: a cluster gets each of them once.
def _numbered(i, function, *args):
    return i, function(*args)


def _in_threads(function, jobs, n_threads, bar):
    """Numbers of jobs and results, in the order of completion."""
    shared, config = _SharedBar(bar), get_config()

    def run(i, job):
        # Scikit-learn's settings belong to a thread.
        with config_context(**config), share():
            return i, function(*job, shared)

    with (
        shared_threads(n_threads) as share,
        ThreadPoolExecutor(n_threads, THREAD_NAME) as pool,
    ):
        try:
            futures = [pool.submit(run, i, job) for i, job in enumerate(jobs)]
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            shared.is_stopped = True
            pool.shutdown(wait=False, cancel_futures=True)
            raise


class _SharedBar:
    """Bar, or None, that several threads move, and that can end what they do."""

    def __init__(self, bar):
        self.bar, self.lock, self.is_stopped = bar, Lock(), False

    def update(self, n):
        """Move it, or end the training that calls."""
        if self.is_stopped:
            raise KeyboardInterrupt
        if self.bar is not None:
            with self.lock:
                self.bar.update(n)
