"""One estimator through any sequence of calls: what it is always follows from them."""

import copy
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_calls import PROFILE, Unchanged, check_array, check_scores, documented
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from small_vae import low_rank_rows, small_vae

X = low_rank_rows()
SETTINGS = {
    "sigma": [0.1, 1.0, "mle"],
    "n_components": [1, 2, 5],
    "noise": ["gaussian", "laplace", "bernoulli"],
    "hidden_layer_sizes": [(8,), (), [4, 4]],
    "max_iter": [0, 1, 2],
    "warm_start": [True, False],
    "learning_rate": [1e-3, 1e30],
    "optimizer": ["adam", "sgd"],
    "early_stopping": [True, False],
    "batch_size": [4, 60],
    "init": ["pca", "random"],
    "linear_path": [True, False],
    "random_state": [0, None],
}
SHAPING = {"n_components", "noise", "hidden_layer_sizes", "linear_path"}
DATA = {
    "rows": X,
    "other rows": low_rank_rows(30, seed=1),
    "single precision": X.astype(np.float32),
    "probabilities": low_rank_rows(20) > 1,
    "one row": X[:1],
    "a gap": np.where(X > 3, np.nan, X),
    "other features": X[:, :3],
    "constant": np.ones((9, 5)),
}
SETTERS = st.sampled_from(
    [("set", (name, value)) for name, values in SETTINGS.items() for value in values]
)
TRAINERS = st.tuples(
    st.sampled_from(["fit", "fit", "X_val", "partial_fit", "partial_fit"]),
    st.sampled_from(["rows", "rows", *DATA]),
)
OTHERS = st.tuples(st.sampled_from(["clone", "pickle", "copy", "use"]), st.none())
SEQUENCES = st.lists(st.one_of(SETTERS, TRAINERS, TRAINERS, OTHERS), max_size=12)


class Story:
    """An estimator, and what is known of it from what has happened to it."""

    def __init__(self):
        self.vae = small_vae(max_iter=1)
        self.shape = None
        self.n_epochs = 0

    def go_on(self, action, argument):
        if action == "set":
            self.vae.set_params(**dict([argument]))
        elif action == "clone":
            self.vae, self.shape = clone(self.vae), None
        elif action == "use":
            self.use()
        elif action in ("pickle", "copy"):
            before = self.vae
            self.vae = (
                copy.deepcopy(before)
                if action == "copy"
                else pickle.loads(pickle.dumps(before))
            )
            if self.shape is not None:
                np.testing.assert_array_equal(self.codes(self.vae), self.codes(before))
        else:
            self.train(action, DATA[argument])

    def train(self, method, rows):
        vae = self.vae
        continues = self.shape is not None and (
            vae.warm_start or method == "partial_fit"
        )
        shape = {name: vae.get_params()[name] for name in SHAPING}
        shape["hidden_layer_sizes"] = tuple(shape["hidden_layer_sizes"])
        before, params = Unchanged(vae), vae.get_params()
        if method == "partial_fit":
            outcome = documented(vae.partial_fit, rows)
        else:
            X_val = rows[:3] if method == "X_val" else None
            outcome = documented(vae.fit, rows, X_val=X_val)
        if isinstance(outcome, Exception):
            before.check()
            return
        assert outcome is vae
        assert vae.get_params() == params
        assert not continues or shape == self.shape
        self.n_epochs = continues * self.n_epochs
        self.n_epochs += 1 if method == "partial_fit" else vae.max_iter
        self.shape, self.n_features = shape, rows.shape[1]
        self.use()

    @staticmethod
    def codes(vae):
        return vae.transform(DATA["probabilities"][:, : vae.n_features_in_])

    def use(self):
        vae = self.vae
        if self.shape is None:
            for call in (vae.transform, vae.score_samples, vae.denoise):
                with pytest.raises(NotFittedError):
                    call(X)
            return
        before = Unchanged(vae)
        rows = DATA["probabilities"][:, : vae.n_features_in_]
        k, d = self.shape["n_components"], self.n_features
        assert vae.n_iter_ == len(vae.history_) == self.n_epochs
        assert vae.n_features_in_ == d
        check_array(self.codes(vae), (20, k), np.float64)
        check_array(vae.sample(2), (2, d), np.float64)
        check_scores(vae, rows)
        check_array(vae.inverse_transform(np.ones((3, k))), (3, d), np.float64)
        noisy = documented(vae.denoise, rows, max_iter=2)
        assert self.shape["noise"] != "bernoulli" or isinstance(noisy, ValueError)
        before.check()


def check_sequence(actions):
    story = Story()
    for action, argument in actions:
        story.go_on(action, argument)
    story.use()


@given(actions=SEQUENCES)
@settings(**PROFILE, max_examples=25)
def test_calls_in_any_order(actions):
    check_sequence(actions)


@pytest.mark.slow
@given(actions=SEQUENCES)
@settings(**PROFILE, max_examples=1000)
def test_many_calls_in_any_order(actions):
    check_sequence(actions)
