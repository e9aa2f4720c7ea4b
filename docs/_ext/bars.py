"""The landing page's bars, drawn from the committed tables of the benchmarks."""

import matplotlib as mpl
import matplotlib.pyplot as plt

OURS, OTHERS = "#0072B2", "#9a9a9a"

WORKLOADS = {
    "table-128": "20,000 × 30, batches of 128",
    "table-512": "20,000 × 30, batches of 512",
    "mnist-128": "20,000 × 784, batches of 128",
    "mnist-1024": "20,000 × 784, batches of 1024",
}
LIBRARIES = {
    "SigmaVAE": "SigmaVAE",
    "bare PyTorch loop": "PyTorch, by hand",
    "bare loop, an epoch's rows gathered at once": "the same, rows gathered",
    "PyTorch loop, DataLoader": "PyTorch, DataLoader",
    "skorch": "skorch",
    "pythae": "pythae",
}
SEARCHES = {
    "BatchedGridSearchCV, 2 processes": "BatchedGridSearchCV",
    "GridSearchCV over SigmaVAE, 2 processes": "GridSearchCV\nover SigmaVAE",
    "GridSearchCV over skorch, 2 processes": "GridSearchCV\nover skorch",
}
TABLES = {"digits-64": "digits, 80 fits", "breast-cancer-64": "breast cancer, 80 fits"}


def draw(results, folder):
    """Draw what a file of results says of fits and of searches.

    Parameters
    ----------
    results : Path
        Markdown with the tables of the benchmarks.
    folder : Path
        Where the pictures go: ``bars_fit.svg`` and ``bars_search.svg``.
    """
    rows = [
        [cell.strip() for cell in line.strip().strip("|").split("|")]
        for line in results.read_text(encoding="utf-8").splitlines()
        if line.startswith("|")
    ]
    fits = {
        (row[0], row[2]): float(row[4].split()[0])
        for row in rows
        if len(row) == 5 and row[0] in WORKLOADS
    }
    searches = {
        (row[0], row[1]): float(row[2])
        for row in rows
        if len(row) == 6 and row[0] in TABLES
    }
    _bars(
        folder / "bars_fit.svg",
        {key: ratio / fits[key[0], "SigmaVAE"] for key, ratio in fits.items()},
        WORKLOADS,
        LIBRARIES,
        "Time of a fit, relative to SigmaVAE (less is better)",
    )
    _bars(
        folder / "bars_search.svg",
        searches,
        TABLES,
        SEARCHES,
        "Seconds for a search over 16 scales in 5 folds (less is better)",
    )


def _bars(path, values, panels, names, title):
    style = {"font.size": 11, "svg.fonttype": "path", "svg.hashsalt": "bars"}
    with mpl.rc_context(style):
        n_rows = len(panels) // 2
        figure, axes = plt.subplots(
            n_rows,
            2,
            # Narrow, so that it can be read on a phone.
            figsize=(7, n_rows * (0.36 * len(names) + 0.75) + 0.3),
            sharey=True,
            squeeze=False,
            layout="constrained",
        )
        for ax, (workload, label) in zip(axes.flat, panels.items(), strict=True):
            lengths = [values[workload, name] for name in names]
            colors = [OURS if i == 0 else OTHERS for i in range(len(names))]
            bars = ax.barh(list(names.values()), lengths, color=colors, height=0.7)
            ax.bar_label(bars, [f"{x:.1f}" for x in lengths], padding=4)
            ax.set_title(label, fontsize=11)
            ax.set_xlim(0, 1.25 * max(lengths))
            ax.set_xticks([])
            ax.spines[["top", "right", "bottom"]].set_visible(False)
            ax.tick_params(length=0)
        axes[0, 0].invert_yaxis()
        figure.suptitle(title, fontsize=12)
        # Without a date the same tables give the same file.
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)
