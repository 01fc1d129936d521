"""Writes what TensorFlow Addons 0.23.0 computes, for the tests to compare with.

Addons reached its end of life in May 2024 and imports only beside TensorFlow 2.15 or
older, so it needs an environment of its own, with Python 3.10 or 3.11:

    pip install -r tests/data/addons_requirements.txt
    python tests/data/make_addons.py

It writes tests/data/addons_0_23_0.npz: the inputs (drawn by NumPy), Gaussian blurs,
colour changes in YIQ, and the N-pairs loss, which is a one-sided InfoNCE.
"""

import pathlib

import numpy as np

TARGET = pathlib.Path(__file__).parent / "addons_0_23_0.npz"
# Size of the kernel in pixels, sigma.
BLURS = ((3, 0.1), (3, 1.0), (5, 0.5), (9, 2.0))
# Hue in turns, factor of saturation, factor of value.
COLORS = ((0.0, 1.0, 0.7), (0.1, 1.0, 1.0), (-0.2, 1.6, 1.2), (0.0, 0.0, 1.0))
TEMPERATURE = 0.5


def main():
    import tensorflow as tf
    import tensorflow_addons as tfa

    rng = np.random.default_rng(0)
    images = rng.uniform(size=(2, 20, 24, 3)).astype("float32")
    blurred = [
        tfa.image.gaussian_filter2d(images, filter_shape=size, sigma=sigma)
        for size, sigma in BLURS
    ]
    colored = [
        tfa.image.adjust_hsv_in_yiq(images, 2 * np.pi * hue, saturation, value)
        for hue, saturation, value in COLORS
    ]
    queries, keys = rng.normal(size=(2, 8, 16)).astype("float32")
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    labels = np.arange(len(queries), dtype="int32")
    loss = tfa.losses.npairs_loss(labels, queries @ keys.T / TEMPERATURE)
    np.savez_compressed(
        TARGET,
        images=images,
        blur_taps_sigma=np.array(BLURS, "float32"),
        blurred=np.stack(blurred),
        color_hue_saturation_value=np.array(COLORS, "float32"),
        colored=np.stack(colored),
        npairs_queries=queries,
        npairs_keys=keys,
        npairs_labels=labels,
        npairs_temperature=np.float32(TEMPERATURE),
        npairs_loss=loss.numpy(),
        tensorflow=tf.__version__,
        tensorflow_addons=tfa.__version__,
    )
    print(f"wrote {TARGET}, {TARGET.stat().st_size} bytes, loss {loss:.4f}")


if __name__ == "__main__":
    main()
