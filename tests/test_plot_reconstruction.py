"""The picture of reconstructions: what it holds and shows."""

import numpy as np
import pandas as pd
import pytest
from small_vae import low_rank_rows, small_vae

from sklearn_sigmavae import ReconstructionDisplay, SigmaVAE

pytest.importorskip("matplotlib")
pytestmark = pytest.mark.usefixtures("plt")


def test_images_lie_over_their_reconstructions(of_images, images):
    display = ReconstructionDisplay.from_estimator(of_images, images[1000:], n_images=5)
    restored = of_images.inverse_transform(of_images.transform(images[1000:1005]))
    np.testing.assert_array_equal(display.original, images[1000:1005])
    np.testing.assert_array_equal(display.restored, restored)
    error = np.sqrt(np.mean((restored - images[1000:1005]) ** 2))
    assert display.error == pytest.approx(error)
    assert display.r2 is None
    mosaic = display.ax_.get_images()[0].get_array()
    assert mosaic.shape == (2 * 8, 5 * 8)
    np.testing.assert_array_equal(mosaic[:8, 8:16], images[1001])
    np.testing.assert_array_equal(mosaic[8:, 16:24], restored[2])
    labels = [text.get_text() for text in display.ax_.get_yticklabels()]
    assert labels == ["original", f"restored,\nerror {error:.3g}"]


def test_fewer_images_than_asked_for(of_images, images):
    display = ReconstructionDisplay.from_estimator(of_images, images[:2])
    assert display.original.shape == (2, 8, 8)


@pytest.mark.parametrize("order", ["channels last", "channels first", "flat"])
def test_colours_are_shown(images, order):
    X = np.stack([images, images[::-1], 16 - images], axis=-1)[:50].astype(np.uint8)
    params = {"image_shape": (8, 8, 3)} if order == "flat" else {}
    if order == "channels first":
        X_in, params = X.transpose(0, 3, 1, 2), {"channels_first": True}
    else:
        X_in = X.reshape(50, -1) if order == "flat" else X
    vae = small_vae(sigma=3.0, **params).fit(X_in)
    display = ReconstructionDisplay.from_estimator(vae, X_in, n_images=3)
    np.testing.assert_array_equal(display.original, X[:3])
    mosaic = display.ax_.get_images()[0].get_array()
    assert mosaic.shape == (2 * 8, 3 * 8, 3)
    assert 0 <= mosaic.min() <= mosaic.max() <= 1


def test_a_table_has_a_bar_for_each_feature(load):
    X = pd.DataFrame(load("wine")[:, :4], columns=["alcohol", "acid", "ash", "alkali"])
    vae = SigmaVAE(2, sigma=0.5, max_iter=2, random_state=0).fit(X)
    display = ReconstructionDisplay.from_estimator(vae, X)
    restored = vae.inverse_transform(vae.transform(X))
    left = np.square(restored - X.to_numpy()).mean(axis=0)
    np.testing.assert_allclose(display.r2, 1 - left / X.to_numpy().var(axis=0))
    widths = [bar.get_width() for bar in display.ax_.patches]
    np.testing.assert_allclose(widths, display.r2)
    labels = [text.get_text() for text in display.ax_.get_yticklabels()]
    assert labels == list(X.columns)
    top, bottom = display.ax_.transData.transform([[0, 0], [0, 3]])[:, 1]
    assert top > bottom  # the first feature is on top


def test_pandas_output_is_no_trouble(vae):
    X = low_rank_rows()
    plain = ReconstructionDisplay.from_estimator(vae, X)
    with_frames = small_vae().set_output(transform="pandas").fit(X)
    np.testing.assert_array_equal(
        ReconstructionDisplay.from_estimator(with_frames, X).restored, plain.restored
    )


@pytest.mark.parametrize("unit", [1e-200, 1.0, 1e200])
def test_units_do_not_matter(load, unit):
    X = load("wine")[:, :4]
    restored = X + np.random.default_rng(0).normal(size=X.shape)
    display = ReconstructionDisplay(original=unit * X, restored=unit * restored).plot()
    left = np.square(restored - X).mean(axis=0)
    np.testing.assert_allclose(display.r2, 1 - left / X.var(axis=0))
    error = np.sqrt(np.mean((restored - X) ** 2))
    assert display.error == pytest.approx(unit * error)


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


def test_a_bad_feature_does_not_hide_the_others():
    X = np.random.default_rng(0).normal(size=(20, 3))
    display = ReconstructionDisplay(original=X, restored=X * [1, 1, 1000]).plot()
    assert display.r2.min() < -1000
    assert display.ax_.get_xlim() == (-1, 1)


def test_images_need_not_be_square():
    X = np.random.default_rng(0).random((40, 5, 7))
    model = small_vae(sigma=0.1).fit(X)
    display = ReconstructionDisplay.from_estimator(model, X, n_images=3)
    picture = display.ax_.get_images()[0]
    assert picture.get_array().shape == (2 * 5, 3 * 7)
    assert picture.get_clim() == (X[:3].min(), X[:3].max())
    np.testing.assert_array_equal(display.ax_.get_yticks(), [2.0, 7.0])


def test_a_norm_of_the_caller_has_limits_of_its_own(of_images, images):
    from matplotlib.colors import PowerNorm

    norm = PowerNorm(0.5, vmin=0, vmax=16)
    display = ReconstructionDisplay.from_estimator(of_images, images, norm=norm)
    assert display.ax_.get_images()[0].norm is norm


@pytest.mark.parametrize("n_images", [1, 8, 60])
def test_labels_do_not_touch(of_images, images, n_images):
    display = ReconstructionDisplay.from_estimator(of_images, images, n_images=n_images)
    display.figure_.canvas.draw()
    boxes = [label.get_window_extent() for label in display.ax_.get_yticklabels()]
    assert boxes[1].y1 <= boxes[0].y0
    assert min(box.x0 for box in boxes) >= 0


def test_many_features_have_no_names():
    X = np.random.default_rng(0).normal(size=(30, 60))
    display = ReconstructionDisplay(original=X, restored=X / 2).plot()
    assert len(display.ax_.patches) == 60
    assert display.ax_.get_ylabel() == "feature"


def test_it_draws_where_it_is_told(of_images, images, plt, vae):
    _, axes = plt.subplots(2)
    display = ReconstructionDisplay.from_estimator(
        of_images, images, ax=axes[0], cmap="viridis"
    )
    assert display.ax_ is axes[0]
    assert axes[0].get_images()[0].get_cmap().name == "viridis"
    display = ReconstructionDisplay.from_estimator(
        vae, low_rank_rows(), ax=axes[1], color="black"
    )
    assert display.figure_ is axes[1].figure
    assert axes[1].patches[0].get_facecolor() == (0, 0, 0, 1)
    assert display.plot() is display
    assert display.ax_ is not axes[1]


def test_bad_input(vae, of_images, images, plt):
    X = low_rank_rows()
    with pytest.raises(ValueError, match="two rows of a table at least"):
        ReconstructionDisplay.from_estimator(vae, X[:1])
    with pytest.raises(ValueError, match="X contains NaN"):
        ReconstructionDisplay.from_estimator(of_images, np.full_like(images, np.nan))
    with pytest.raises(TypeError, match="'ax' of ReconstructionDisplay"):
        ReconstructionDisplay.from_estimator(vae, X, ax=plt.subplots(2)[1])
    five = np.random.default_rng(0).random((40, 4, 4, 5))
    with pytest.raises(ValueError, match="to images with 5"):
        ReconstructionDisplay.from_estimator(small_vae(sigma=0.1).fit(five), five)
    with pytest.raises(TypeError, match="must be a fitted SigmaVAE"):
        ReconstructionDisplay.from_estimator("vae", X)
    with pytest.raises(ValueError, match="not fitted"):
        ReconstructionDisplay.from_estimator(small_vae(), X)
    with pytest.raises(ValueError, match="'n_images'"):
        ReconstructionDisplay.from_estimator(vae, X, n_images=0)
    with pytest.raises(ValueError, match="features"):
        ReconstructionDisplay.from_estimator(vae, X[:, :2])
