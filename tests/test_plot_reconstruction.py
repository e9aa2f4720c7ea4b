"""The picture of reconstructions, and what it shares with other displays."""

import numpy as np
import pandas as pd
import pytest
from small_vae import low_rank_rows, small_vae

from sklearn_sigmavae import (
    DenoisingDisplay,
    LatentSpaceDisplay,
    ReconstructionDisplay,
    SigmaVAE,
)

pytest.importorskip("matplotlib")
pytestmark = pytest.mark.usefixtures("plt")

OF_IMAGES = [DenoisingDisplay, ReconstructionDisplay]


def test_images_lie_over_their_reconstructions(images):
    X = images[:100, :, :5]
    vae = small_vae(sigma=2.0).fit(X)
    display = ReconstructionDisplay.from_estimator(vae, X, n_images=4)
    restored = vae.inverse_transform(vae.transform(X[:4]))
    np.testing.assert_array_equal(display.original, X[:4])
    np.testing.assert_array_equal(display.restored, restored)
    error = np.sqrt(np.mean((restored - X[:4]) ** 2))
    assert display.error == pytest.approx(error)
    assert display.r2 is None
    (picture,) = display.ax_.get_images()
    assert picture.get_clim() == (X[:4].min(), X[:4].max())
    mosaic = picture.get_array()
    assert mosaic.shape == (2 * 8, 4 * 5)
    np.testing.assert_array_equal(mosaic[:8, 5:10], X[1])
    np.testing.assert_array_equal(mosaic[8:, 10:15], restored[2])
    np.testing.assert_array_equal(display.ax_.get_yticks(), [3.5, 11.5])
    labels = [text.get_text() for text in display.ax_.get_yticklabels()]
    assert labels == ["original", f"restored,\nerror {error:.3g}"]
    few = ReconstructionDisplay.from_estimator(vae, X[:2])
    assert few.original.shape == (2, 8, 5)


@pytest.mark.parametrize("order", ["channels last", "channels first", "flat"])
@pytest.mark.parametrize("display", OF_IMAGES)
def test_colors_are_shown(images, display, order):
    X = np.stack([images, images[::-1], 16 - images], axis=-1)[:50].astype(np.uint8)
    X_in, params = {
        "channels last": (X, {}),
        "channels first": (X.transpose(0, 3, 1, 2), {"channels_first": True}),
        "flat": (X.reshape(50, -1), {"image_shape": (8, 8, 3)}),
    }[order]
    vae = small_vae(sigma=3.0, **params).fit(X_in)
    shown = display.from_estimator(vae, X_in, n_images=3)
    original = shown.original if display is ReconstructionDisplay else shown.clean
    np.testing.assert_array_equal(original, X[:3])
    mosaic = shown.ax_.get_images()[0].get_array()
    assert mosaic.shape[1:] == (3 * 8, 3)
    np.testing.assert_allclose(mosaic[:8, 8:16], (X[1] - X[:3].min()) / np.ptp(X[:3]))
    assert 0 <= mosaic.min() <= mosaic.max() <= 1


def test_a_table_has_a_bar_for_each_feature(load):
    X = pd.DataFrame(load("wine")[:, :4], columns=["alcohol", "acid", "ash", "alkali"])
    vae = SigmaVAE(2, sigma=0.5, max_iter=2, random_state=0).fit(X)
    display = ReconstructionDisplay.from_estimator(vae, X)
    restored = vae.inverse_transform(vae.transform(X))
    residual = np.square(restored - X.to_numpy()).mean(axis=0)
    np.testing.assert_allclose(display.r2, 1 - residual / X.to_numpy().var(axis=0))
    widths = [bar.get_width() for bar in display.ax_.patches]
    np.testing.assert_allclose(widths, display.r2)
    labels = [text.get_text() for text in display.ax_.get_yticklabels()]
    assert labels == list(X.columns)
    top, bottom = display.ax_.transData.transform([[0, 0], [0, 3]])[:, 1]
    assert top > bottom  # the first feature is on top
    vae.set_output(transform="pandas")
    again = ReconstructionDisplay.from_estimator(vae, X)
    np.testing.assert_array_equal(again.restored, display.restored)


@pytest.mark.parametrize("unit", [1e-200, 1.0, 1e200])
def test_units_do_not_matter(load, unit):
    X = load("wine")[:, :4]
    restored = X + np.random.default_rng(0).normal(size=X.shape)
    display = ReconstructionDisplay(original=unit * X, restored=unit * restored).plot()
    residual = np.square(restored - X)
    expected = 1 - residual.mean(axis=0) / X.var(axis=0)
    np.testing.assert_allclose(display.r2, expected)
    assert display.error == pytest.approx(unit * np.sqrt(residual.mean()))


def test_constant_features_have_no_bar():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(20, 4))
    X[:, 1] = 0.1  # whose mean is not exactly 0.1
    X[:, 2] = 0.0
    restored = X + 1e-9 * rng.normal(size=X.shape)
    display = ReconstructionDisplay(original=X, restored=restored).plot()
    np.testing.assert_array_equal(np.isnan(display.r2), [False, True, True, False])
    labels = [text.get_text() for text in display.ax_.get_yticklabels()]
    assert labels[1] == "feature 1 (constant)"
    assert labels[3] == "feature 3"
    assert display.ax_.get_xlim() == (0, 1)


def test_many_features_have_no_names_and_a_bad_one_does_not_hide_others():
    X = np.random.default_rng(0).normal(size=(30, 60))
    restored = X * np.where(np.arange(60) == 7, 1000, 1)
    display = ReconstructionDisplay(original=X, restored=restored).plot()
    assert len(display.ax_.patches) == 60
    assert display.ax_.get_ylabel() == "feature"
    assert display.r2.min() < -1000
    assert display.ax_.get_xlim() == (-1, 1)


@pytest.mark.parametrize("n_images", [1, 8, 60])
def test_labels_do_not_touch(of_images, images, n_images):
    display = ReconstructionDisplay.from_estimator(of_images, images, n_images=n_images)
    display.figure_.canvas.draw()
    boxes = [label.get_window_extent() for label in display.ax_.get_yticklabels()]
    assert boxes[1].y1 <= boxes[0].y0
    assert min(box.x0 for box in boxes) >= 0


def test_keywords_reach_the_artists(of_images, images, vae):
    from matplotlib.colors import PowerNorm

    norm = PowerNorm(0.5, vmin=0, vmax=16)  # it has limits of its own
    shown = ReconstructionDisplay.from_estimator(
        of_images, images, norm=norm, cmap="viridis"
    )
    (picture,) = shown.ax_.get_images()
    assert picture.norm is norm
    assert picture.get_cmap().name == "viridis"
    display = ReconstructionDisplay.from_estimator(vae, low_rank_rows(), color="black")
    assert display.ax_.patches[0].get_facecolor() == (0, 0, 0, 1)


# Of all displays on one axes


@pytest.mark.parametrize("display", [*OF_IMAGES, LatentSpaceDisplay])
def test_it_draws_on_the_given_axes(display, of_images, images, plt):
    _, axes = plt.subplots(2)
    shown = display.from_estimator(of_images, images[:20], ax=axes[0])
    assert shown.ax_ is axes[0]
    assert shown.plot(axes[1]) is shown
    assert (shown.ax_, shown.figure_) == (axes[1], axes[1].figure)
    shown.plot()
    assert shown.figure_ is not axes[1].figure
    with pytest.raises(TypeError, match=r"'ax' .* must be one matplotlib Axes"):
        shown.plot(axes)
    with pytest.raises(TypeError, match=r"'ax' .* must be one matplotlib Axes"):
        display.from_estimator(of_images, images, ax=axes)


@pytest.mark.parametrize("display", [*OF_IMAGES, LatentSpaceDisplay])
def test_other_estimators_are_refused(display, images):
    with pytest.raises(TypeError, match="must be a fitted SigmaVAE"):
        display.from_estimator("vae", images)
    with pytest.raises(ValueError, match="not fitted"):
        display.from_estimator(small_vae(), images)


@pytest.mark.parametrize("display", [*OF_IMAGES, LatentSpaceDisplay])
def test_what_cannot_be_drawn_as_an_image_is_refused(display, vae):
    params = {"kind": "traversal"} if display is LatentSpaceDisplay else {}
    five = np.random.default_rng(0).random((40, 4, 4, 5))
    with pytest.raises(ValueError, match="to images with 5"):
        display.from_estimator(small_vae(sigma=0.1).fit(five), five, **params)
    if display is not ReconstructionDisplay:
        with pytest.raises(ValueError, match="fitted to a table"):
            display.from_estimator(vae, low_rank_rows(), **params)


def test_bad_input(vae, of_images, images):
    X = low_rank_rows()
    with pytest.raises(ValueError, match="one row do not vary"):
        ReconstructionDisplay.from_estimator(vae, X[:1])
    with pytest.raises(ValueError, match="X contains NaN"):
        ReconstructionDisplay.from_estimator(of_images, np.full_like(images, np.nan))
    with pytest.raises(ValueError, match="'n_images'"):
        ReconstructionDisplay.from_estimator(vae, X, n_images=0)
    with pytest.raises(ValueError, match="features"):
        ReconstructionDisplay.from_estimator(vae, X[:, :2])
