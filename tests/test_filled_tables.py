"""Filling gaps of DataFrames, as the documentation does it."""

import numpy as np
import pandas as pd
import polars as pl
import pytest
from small_vae import low_rank_rows, small_vae

# Labels that repeat, in no order.
FRAME = pd.DataFrame(
    low_rank_rows(),
    columns=["d", "b", "e", "a", "c"],
    index=[f"row {i * 7 % 40}" for i in range(60)],
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


@pytest.mark.parametrize("kind", TABLES)
def test_frames_keep_what_they_know(models, kind):
    X, model = TABLES[kind], models["Int64" in kind]
    restored = model.denoise(X)
    # As of inverse_transform, set_output makes no difference.
    assert type(restored) is np.ndarray
    plain = (INTEGERS if kind == "Int64" else FRAME).astype(np.float64)
    expected = model.denoise(plain.mask(GAPS))
    np.testing.assert_allclose(restored, expected, rtol=1e-3, atol=1e-4)

    filled = X.combine_first(pd.DataFrame(restored, X.index, X.columns))
    assert filled.index.equals(X.index)
    assert filled.columns.equals(X.columns)
    values = filled.to_numpy(dtype=np.float64)
    np.testing.assert_array_equal(values[GAPS], restored[GAPS])
    np.testing.assert_allclose(values[~GAPS], plain.to_numpy()[~GAPS], rtol=1e-6)
    # Good to go on with.
    assert np.isfinite(model.score(filled))


@pytest.mark.parametrize("kind", ["Float64", "Int64"])
def test_polars_tables_keep_what_they_know(models, kind):
    table, model = TABLES[kind], models["Int64" in kind]
    lists = table.astype(object).mask(GAPS, None).to_dict(orient="list")
    X = pl.DataFrame(lists)
    restored = model.denoise(X)
    np.testing.assert_array_equal(restored, model.denoise(table))
    filled = pl.DataFrame(restored, schema=X.columns)
    filled = X.with_columns(pl.coalesce(c, filled[c]).alias(c) for c in X.columns)
    assert filled.columns == list(FRAME.columns)
    values = filled.to_numpy()
    np.testing.assert_array_equal(values[GAPS], restored[GAPS])
    known = table.to_numpy(dtype=np.float64, na_value=np.nan)
    np.testing.assert_array_equal(values[~GAPS], known[~GAPS])
