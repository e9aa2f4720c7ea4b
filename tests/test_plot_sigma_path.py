"""The picture of a path: what its lines show."""

import sys

import numpy as np
import pytest
from linear_gaussian import spectrum
from scipy.stats import sem
from small_vae import low_rank_rows, small_vae

from sklearn_sigmavae import SigmaPathDisplay, sigma_path

pytest.importorskip("matplotlib")
pytestmark = pytest.mark.usefixtures("plt")

X = low_rank_rows()
KINDS = ["score", "rate_distortion", "power_law"]


@pytest.fixture(scope="module")
def path():
    """A path with three folds, from the scale that hides everything."""
    return sigma_path(X, n_sigmas=6, estimator=small_vae(), cv=3, max_iter=1)


@pytest.fixture(scope="module")
def short_path():
    """A path with too few scales for a power law, of another noise, without folds."""
    vae = small_vae(noise="laplace")
    return sigma_path(X, [0.2, 0.4], estimator=vae, max_iter=1)


def line(ax, label):
    """Data of the line whose label begins so."""
    (found,) = [line for line in ax.get_lines() if line.get_label().startswith(label)]
    return found.get_data()


def labels(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_scores_are_drawn_with_a_band_of_a_standard_error(path):
    ax = SigmaPathDisplay.from_path(path).axes_[0]
    mean, error = path.test_scores.mean(axis=1), sem(path.test_scores, axis=1)
    assert np.array_equal(line(ax, "Fit to all rows"), [path.sigmas, path.score])
    assert np.array_equal(line(ax, "Held-out rows, mean of 3"), [path.sigmas, mean])
    assert np.allclose(line(ax, "Best"), [[path.best_sigma], [mean.max()]])
    (band,) = ax.collections
    (outline,) = band.get_paths()
    for edge in (mean - error, mean + error):
        for point in zip(path.sigmas, edge, strict=True):
            assert np.isclose(outline.vertices, point).all(axis=1).any()
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "linear")
    assert ax.get_xlabel() == "σ, in the units of X"
    assert "nats per row" in ax.get_ylabel()


def test_the_rate_is_drawn_against_the_distortion(path):
    ax = SigmaPathDisplay.from_path(path).axes_[1]
    error = np.sqrt(path.distortion / 5)
    best = path.best_index
    assert np.allclose(line(ax, "Fit to all rows"), [error, path.kl])
    assert np.allclose(line(ax, "Best"), [[error[best]], [path.kl[best]]])
    eigenvalues, tau = spectrum(X), path.sigmas[:, None] ** 2
    used = (eigenvalues > tau) & (np.arange(5) < 2)
    distortion = np.where(used, tau, eigenvalues).sum(axis=1)
    rate = 0.5 * np.where(used, np.log(eigenvalues / tau), 0).sum(axis=1)
    linear = [np.sqrt(distortion / 5), rate]
    assert np.allclose(line(ax, "Linear model"), linear, rtol=1e-5, atol=1e-6)
    assert (ax.get_xscale(), ax.get_yscale()) == ("linear", "linear")
    assert ax.get_xlabel().startswith("Root mean square error")
    assert ax.get_xlabel().endswith("in the units of X")
    assert ax.get_ylabel() == "KL, nats per row"


def test_the_power_law_is_drawn_where_it_was_fitted():
    scales = np.geomspace(1, 0.05, 30)
    rows = scales * np.random.RandomState(0).standard_normal((200, 30))
    vae = small_vae(n_components=20, hidden_layer_sizes=())
    path = sigma_path(rows, n_sigmas=12, eps=0.05, estimator=vae, max_iter=0)
    ax = SigmaPathDisplay.from_path(path).axes_[2]
    with pytest.warns(UserWarning, match="are not fitted"):
        law = path.power_law()
    assert 3 <= len(law.sigmas) < len(path.sigmas)
    fitted = law.prefactor * law.sigmas**-law.exponent
    assert np.array_equal(line(ax, "Power law"), [law.sigmas, fitted])
    (label,) = [label for label in labels(ax) if label.startswith("Power law")]
    assert f"{law.exponent:.2f} ± {law.exponent_error:.2f}, R² = {law.r2:.3f}" in label
    for start, kl in (("Fit", path.kl), ("Linear", path.linear_kl)):
        assert np.array_equal(line(ax, start), [path.sigmas, kl])
    # The first scale hides everything: zero is not on the axis.
    assert path.linear_kl[0] == 0
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert ax.get_ylim()[0] > 1e-4 * path.kl.max()
    assert ax.get_xlabel() == "σ, in the units of X"
    assert ax.get_ylabel() == "KL, nats per row"


def test_what_a_path_lacks_is_left_out(short_path):
    score, rate_distortion, power_law = SigmaPathDisplay.from_path(short_path).axes_
    assert not score.collections
    assert len(score.get_lines()) == 2
    # The closed form knows of squares only.
    assert not any(label.startswith("Linear") for label in labels(rate_distortion))
    assert not any(label.startswith("Power") for label in labels(power_law))
    error = short_path.distortion / 5
    assert np.allclose(line(rate_distortion, "Fit"), [error, short_path.kl])
    assert rate_distortion.get_xlabel().startswith("Mean absolute error")


def test_a_display_of_few_arrays(path):
    arrays = {name: getattr(path, name) for name in ("sigmas", "score", "distortion")}
    display = SigmaPathDisplay(**arrays, kl=np.zeros(6), n_features=5)
    assert display.plot() is display
    assert [len(ax.get_lines()) for ax in display.axes_] == [1, 1, 1]
    display.figure_.canvas.draw()
    # A wide range of the KL is cut.
    display.kl = np.geomspace(1e-9, 10, 6)
    assert display.plot(kind="power_law").ax_.get_ylim()[0] == pytest.approx(1e-2)
    # One fold has no standard error.
    display.test_scores = path.test_scores[:, :1]
    ax = display.plot(kind="score").ax_
    assert not ax.collections
    assert np.array_equal(line(ax, "Held-out")[1], path.test_scores[:, 0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_panel_can_be_drawn_alone(path, kind, plt):
    _, ax = plt.subplots()
    display = SigmaPathDisplay.from_path(path, ax=ax, kind=kind)
    assert (display.ax_, display.figure_) == (ax, ax.figure)
    among_three = SigmaPathDisplay.from_path(path).axes_[KINDS.index(kind)]
    assert labels(ax) == labels(among_three)
    for alone, other in zip(ax.get_lines(), among_three.get_lines(), strict=True):
        assert np.array_equal(alone.get_data(), other.get_data())
    assert len(display.plot(kind=kind).axes_) == 1
    assert display.ax_ is not ax


def test_three_panels_are_drawn(path, plt):
    display = SigmaPathDisplay.from_path(path)
    assert display.axes_.shape == (3,)
    assert all(ax.figure is display.figure_ for ax in display.axes_)
    display.figure_.canvas.draw()
    figure, axes = plt.subplots(3, 1)
    for given in (axes, list(axes)):
        display.plot(given)
        assert (display.ax_, display.figure_) == (axes[0], figure)
        assert list(display.axes_) == list(axes)


def test_keywords_reach_the_lines_of_the_fit(path):
    display = SigmaPathDisplay.from_path(path, c="black", lw=3, label="mine")
    for ax in display.axes_:
        (mine,) = [line for line in ax.get_lines() if line.get_label() == "mine"]
        assert (mine.get_color(), mine.get_linewidth()) == ("black", 3)


@pytest.mark.parametrize(
    "given",
    [
        {"sigmas": [0.2, 0.4, 0.8], "cv": 2},
        {"n_sigmas": 4, "eps": 0.1, "X_val": low_rank_rows(seed=1)},
    ],
    ids=["cv", "X_val"],
)
def test_an_estimator_is_drawn_as_its_path(given, plt):
    vae = small_vae()
    _, ax = plt.subplots()
    display = SigmaPathDisplay.from_estimator(
        vae, X, **given, max_iter=2, ax=ax, kind="score", color="red"
    )
    path = sigma_path(X, estimator=vae, max_iter=2, **given)
    expected = vars(SigmaPathDisplay.from_path(path))
    drawn = vars(display)
    assert drawn.keys() == expected.keys()
    for name in expected.keys() - {"figure_", "axes_", "ax_", "power_law"}:
        assert np.array_equal(drawn[name], expected[name]), name
    assert display.ax_ is ax
    assert ax.get_lines()[0].get_color() == "red"


@pytest.mark.parametrize(
    ("count", "kind", "message"),
    [
        (2, "all", "must hold 3 axes .* Got 2"),
        (3, "score", "must hold 1 axes .* Got 3"),
        (1, "line", "'kind' parameter .* Got 'line' instead"),
    ],
)
def test_wrong_axes_and_kinds_are_refused(path, count, kind, message, plt):
    _, axes = plt.subplots(1, count)
    with pytest.raises(ValueError, match=message):
        SigmaPathDisplay.from_path(path, ax=axes, kind=kind)
    # Before there is a path.
    with pytest.raises(ValueError, match=message):
        SigmaPathDisplay.from_estimator(None, None, ax=axes, kind=kind)


def test_without_matplotlib_the_error_says_how_to_install_it(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        SigmaPathDisplay.from_path(path)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        SigmaPathDisplay.from_estimator(small_vae(), X)
