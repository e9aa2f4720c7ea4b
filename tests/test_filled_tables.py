"""Filling gaps of DataFrames, as the documentation does it."""

import numpy as np
import pandas as pd
import polars as pl
import pytest
from small_vae import low_rank_rows, small_vae

NAMES = ["d", "b", "e", "a", "c"]
# Labels that repeat, in no order.
FRAME = pd.DataFrame(
    low_rank_rows(), columns=NAMES, index=[f"row {i * 7 % 40}" for i in range(60)]
)
GAPS = np.random.default_rng(0).random(FRAME.shape) < 0.2
GAPS[3] = True
INTEGERS = (10 * FRAME).round().astype("Int64")
MIXED = {"d": "Float64", "b": object, "e": "float32"}

TABLES = {
    "NaN": FRAME.mask(GAPS),
    "float32": FRAME.astype("float32").mask(GAPS),
    "Float64": FRAME.astype("Float64").mask(GAPS),
    "Int64": INTEGERS.mask(GAPS),
    "pd.NA in objects": FRAME.astype(object).mask(GAPS, pd.NA),
    "None in objects": FRAME.astype(object).mask(GAPS, None),
    "mixed": FRAME.mask(GAPS).astype(MIXED).mask(GAPS, pd.NA),
}


@pytest.fixture(scope="module")
def models():
    """Models of both scales, which return frames where they transform."""
    return {
        is_integer: small_vae(sigma=0.3 * 10**is_integer)
        .fit(INTEGERS if is_integer else FRAME)
        .set_output(transform="pandas")
        for is_integer in (False, True)
    }


@pytest.fixture
def model(models, kind):
    return models["Int64" in kind]


@pytest.mark.parametrize("kind", TABLES)
def test_frames_keep_what_they_know(model, kind):
    X = TABLES[kind]
    restored = model.denoise(X)
    # As of inverse_transform, set_output makes no difference.
    assert type(restored) is np.ndarray
    assert type(model.inverse_transform(model.transform(FRAME))) is np.ndarray
    plain = INTEGERS.astype(np.float64) if kind == "Int64" else FRAME
    plain = np.where(GAPS, np.nan, plain)
    np.testing.assert_allclose(
        restored, model.denoise(_named(plain)), rtol=1e-3, atol=1e-4
    )

    filled = X.combine_first(pd.DataFrame(restored, X.index, X.columns))
    assert filled.index.equals(X.index)
    assert filled.columns.equals(X.columns)
    assert not filled.isna().any(axis=None)
    values = filled.to_numpy(dtype=np.float64)
    np.testing.assert_array_equal(values[GAPS], restored[GAPS])
    np.testing.assert_allclose(values[~GAPS], plain[~GAPS], rtol=1e-6)
    # Good to go on with.
    assert np.isfinite(model.score(filled))


@pytest.mark.parametrize("kind", ["Float64", "Int64"])
def test_polars_tables_keep_what_they_know(model, kind):
    X = pl.DataFrame(
        {
            name: [
                None if gap else value
                for value, gap in zip(TABLES[kind][name], gaps, strict=True)
            ]
            for name, gaps in zip(NAMES, GAPS.T, strict=True)
        }
    )
    restored = model.denoise(X)
    np.testing.assert_array_equal(restored, model.denoise(TABLES[kind]))
    filled = pl.DataFrame(restored, schema=X.columns)
    filled = X.with_columns(pl.coalesce(c, filled[c]).alias(c) for c in X.columns)
    assert filled.columns == NAMES
    assert sum(filled.null_count().row(0)) == 0
    values = filled.to_numpy()
    np.testing.assert_array_equal(values[GAPS], restored[GAPS])
    known = TABLES[kind].to_numpy(dtype=np.float64, na_value=np.nan)
    np.testing.assert_array_equal(values[~GAPS], known[~GAPS])


@pytest.mark.parametrize("kind", TABLES)
def test_tables_with_gaps_are_not_fitted_to(kind):
    with pytest.raises(ValueError, match=r"Input X contains NaN.*SimpleImputer"):
        small_vae().fit(TABLES[kind])


def _named(values):
    return pd.DataFrame(values, columns=NAMES)
