"""Timing in turns, files of results, and the tables and environment of a report."""

import argparse
import contextlib
import gc
import json
import os
import platform
import re
import time
import traceback
from datetime import date
from itertools import starmap
from pathlib import Path

import numpy as np
import sklearn
import skorch
import torch
from joblib import Parallel, delayed


def alternate(competitors, repeats):
    """Seconds that each competitor takes in each repeat, taking turns."""
    times = {name: [] for name in competitors}
    for _ in range(repeats):
        for name, run in competitors.items():
            gc.collect()
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: np.array(t) for name, t in times.items()}


def against_fastest(ours, times):
    """Times of the fastest other competitor, and ours."""
    others = {name: t for name, t in times.items() if name != ours}
    best = min(others, key=lambda name: np.median(others[name]))
    return {best: others[best], ours: times[ours]}


def table_rows(what, times):
    """Rows of a table in markdown, one per competitor."""
    baseline = next(iter(times.values()), None)
    for name, t in times.items():
        ratios = t / baseline
        spread = f"{np.median(ratios):.3f} ({ratios.min():.2f}..{ratios.max():.2f})"
        yield f"| {what} | {name} | {np.median(t):.3g} | {spread} |"


class Results:
    """A JSON file of finished runs, by what was run."""

    def __init__(self, path):
        self.path = path
        self.found = self.read()

    def read(self):
        """What the file holds."""
        return json.loads(self.path.read_text()) if self.path.exists() else {}

    def add(self, key, record):
        """Write at once. Another run may have added to the file in the meantime."""
        import fcntl  # which Windows lacks

        with open(f"{self.path}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.found = self.read() | {key: record}
            part = self.path.with_suffix(".part")
            part.write_text(json.dumps(self.found))
            os.replace(part, self.path)

    def get(self, key):
        """A finished run."""
        if key not in self.found:
            raise LookupError(f"{key} has to be run first.")
        return self.found[key]


def run_missing(jobs, results, again=False, n_jobs=1):
    """Run what the results lack in `n_jobs` processes, and return how many failed.

    A failure is printed and does not stop the rest.
    """
    n_failed = 0
    parallel = Parallel(n_jobs=n_jobs, return_as="generator_unordered")
    missing = (item for item in jobs.items() if again or item[0] not in results.found)
    for key, record, seconds, error in parallel(starmap(delayed(attempt), missing)):
        if error:
            n_failed += 1
            print(f"{key} failed\n{error}", flush=True)
            continue
        results.add(key, record)
        shown = {k: v for k, v in record.items() if not k.endswith("rows")}
        print(f"{key} {seconds:.1f} s {shown}", flush=True)
    return n_failed


def attempt(key, job):
    """What a job returns, its seconds, and the traceback if it failed."""
    start = time.perf_counter()
    record = error = None
    try:
        record = job()
    except Exception:
        error = traceback.format_exc()
    return key, record, time.perf_counter() - start, error


def run_and_report(description, jobs, report):
    """The command line of a benchmark: run what its file of results lacks, and report.

    The report gets what is found, and yields lines. Returns how many jobs failed.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--n-jobs", type=int, default=-1)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    results = Results(args.results)
    n_failed = run_missing(jobs, results, n_jobs=args.n_jobs)
    publish(report(results.found), args.output)
    return n_failed


def markdown(frame):
    """Lines of a table, the index being its first column."""
    frame = frame.reset_index()
    yield f"| {' | '.join(frame.columns)} |"
    yield "|---" * len(frame.columns) + "|"
    for row in frame.itertuples(index=False):
        yield f"| {' | '.join(map(str, row))} |"
    yield ""


def publish(lines, output=None):
    """Print lines as they come; write them to a file at the end, if one is given."""
    seen = []
    for line in lines:
        print(line, flush=True)
        seen.append(line)
    if output:
        output.write_text("\n".join(seen) + "\n")


def environment():
    """The machine and how busy it is, the versions and the date."""
    return (
        f"{cpu_model()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; "
        f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"skorch {skorch.__version__}, scikit-learn {sklearn.__version__}; "
        f"{date.today()}."
    )


def cpu_model():
    """Name of the processor."""
    with contextlib.suppress(OSError):
        if found := re.search("model name.*: (.*)", Path("/proc/cpuinfo").read_text()):
            return found[1]
    return platform.processor() or platform.machine()
