"""Jobs in one process or in several, with one progress bar."""

from joblib import Parallel, delayed, effective_n_jobs
from joblib.parallel import get_active_backend

from .._training.callbacks import progress


def run_jobs(
    function, jobs, n_epochs, *, n_jobs, verbose, description, pre_dispatch="2*n_jobs"
):
    """Results of a function of each job's arguments and a bar or None."""
    backend, _ = get_active_backend()
    # In order of completion, if there is a bar and the backend supports it.
    unordered = verbose and backend.supports_return_generator
    parallel = Parallel(
        n_jobs=n_jobs,
        pre_dispatch=pre_dispatch,
        return_as="generator_unordered" if unordered else "list",
    )
    results, done = [None] * len(jobs), 0
    with progress(sum(n_epochs), verbose, description) as bar:
        seen = bar if effective_n_jobs(n_jobs) == 1 else None
        for i, result in parallel(
            delayed(_numbered)(i, function, *job, seen) for i, job in enumerate(jobs)
        ):
            results[i] = result
            done += n_epochs[i]
            if bar is not None:
                # Includes epochs in other processes, and those that were skipped.
                bar.update(done - bar.n)
    return results


# Large arguments stay arguments: a cluster gets each of them once.
def _numbered(i, function, *args):
    return i, function(*args)
