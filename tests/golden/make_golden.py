"""Writes this version's golden files: python make_golden.py FOLDER, once a release.

Each is a saved model beside what it makes of some rows. Folders of earlier releases
stay as they are: that their files load, to the same results, is the promise. (Of 0.1,
the scores of "bernoulli" and "flat_images" were renewed, to higher ones, when
log-variances above 0 got a bound.) Those of "format_2" were written before models had
principal coordinates, those of "format_3" before they had priors.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd

from sklearn_sigmavae import GeneralizedNormalNoise, MixturePrior, SigmaVAE
from sklearn_sigmavae.networks import MLP, Conv

RNG = np.random.RandomState(0)
TABLE = 1.0 + RNG.standard_normal((60, 2)) @ RNG.standard_normal((2, 5))
TABLE += 0.3 * RNG.standard_normal(TABLE.shape)
IMAGES = RNG.randint(0, 256, (40, 6, 5, 3)).astype(np.uint8)

MODELS = {
    "defaults": ({}, TABLE),
    "linear_laplace": ({"hidden_layer_sizes": (), "noise": "laplace"}, TABLE),
    "mixture": ({"prior": MixturePrior(3)}, TABLE),
    "learned_scale": ({"sigma": "mle", "network": MLP((4,), "tanh")}, TABLE),
    "scales_per_feature": (
        {"sigma": np.linspace(0.1, 0.5, 5), "noise": GeneralizedNormalNoise(1.5)},
        pd.DataFrame(TABLE, columns=list("abcdé")),
    ),
    "bernoulli": ({"noise": "bernoulli"}, (TABLE > 1).astype(float)),
    "conv": ({"network": Conv((2, 4), hidden_layer_sizes=(8,)), "sigma": 40}, IMAGES),
    "flat_images": (
        {
            "network": "mlp",
            "image_shape": (6, 5, 3),
            "sigma": 40,
            "linear_path": False,
            "init": "random",
            "hidden_layer_sizes": [4],
        },
        IMAGES.reshape(40, -1),
    ),
}


def main(folder):
    folder.mkdir(parents=True)
    for name, (params, X) in MODELS.items():
        defaults = {"hidden_layer_sizes": (6,), "sigma": 0.3, "max_iter": 3}
        vae = SigmaVAE(2, random_state=0, device="cpu", **{**defaults, **params})
        vae.fit(X)
        vae.save(folder / f"{name}.safetensors")
        rows = np.asarray(X[:5])
        codes = SigmaVAE.transform(vae, X[:5])
        arrays = {
            "rows": rows,
            "codes": codes,
            "scores": vae.score_samples(X[:5]),
            "restored": vae.inverse_transform(codes),
        }
        np.savez(folder / f"{name}.npz", **arrays)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
