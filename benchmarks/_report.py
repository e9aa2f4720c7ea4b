"""Timing in turns, and the tables and environment of a report."""

import contextlib
import gc
import os
import platform
import re
import time
from datetime import date
from pathlib import Path

import numpy as np
import sklearn
import skorch
import torch


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
