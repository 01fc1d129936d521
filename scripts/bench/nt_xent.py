"""NT-Xent at batch 4096: time and memory of the dense form and its alternatives."""

import os
import tempfile

from bench import harness

SIZES = {
    "full": {"n": 4096, "small": 256, "dim": 128, "block_rows": 512},
    "tiny": {"n": 64, "small": 16, "dim": 8, "block_rows": 32},
}


def measure(options) -> dict:
    sizes = SIZES[options.size]
    n, small, dim = sizes["n"], sizes["small"], sizes["dim"]
    matrix_bytes = 4 * (2 * n) ** 2
    at_n, at_small = {"n": n, "dim": dim}, {"n": small, "dim": dim}
    block_rows = sizes["block_rows"]
    start = harness.tensorflow_worker
    with tempfile.TemporaryDirectory() as folder:
        files = [os.path.join(folder, name) for name in ("dense.npy", "blocks.npy")]
        tasks = {
            "dense": start("loss", form="dense", save=files[0], **at_n),
            "blocks": start(
                "loss", form="blocks", save=files[1], block_rows=block_rows, **at_n
            ),
            "small": start("loss", form="dense", **at_small),
            "broadcast": start("loss", form="broadcast", **at_small),
        }
        with harness.workers(tasks) as reported:
            timings = harness.measure_rounds(tasks, options.pairs)
        difference = relative_difference(*files)
    memory = {name: reported[name]["bytes"] for name in tasks}
    rows = [
        harness.row(
            f"NT-Xent, N = {small}, d = {dim}: speed",
            "the broadcast form",
            harness.ratios(timings["broadcast"], timings["small"]),
            least=1.0,
        ),
        harness.row(
            f"NT-Xent, N = {small}, d = {dim}: peak memory",
            "the broadcast form",
            [memory["small"] / memory["broadcast"]],
            most=1.0,
            form="{:.3f}x",
        ),
        harness.row(
            f"NT-Xent, N = {n}, d = {dim}, dense: peak memory",
            f"one (2N, 2N) float32 matrix, {matrix_bytes / 1e6:.0f} MB",
            [memory["dense"] / matrix_bytes],
        ),
        harness.row(
            f"the same with --loss_block_rows={block_rows}: peak memory",
            "the same matrix",
            [memory["blocks"] / matrix_bytes],
            most=1.0,
        ),
        harness.row(
            "the same: speed",
            "the dense form",
            harness.ratios(timings["dense"], timings["blocks"]),
        ),
        harness.row(
            "the same: gradient, largest difference relative to the largest entry",
            "the dense form",
            [difference],
            most=1e-5,
            form="{:.1e}",
        ),
    ]
    return {"rows": rows, "paragraphs": [PARAGRAPH], "clock": "wall"}


PARAGRAPH = (
    "Memory is the peak of a fresh process minus its memory after the same call on "
    "four images. The target was at most 1.5 matrices, or less than one with row "
    "blocks. The dense form holds the similarities, their exponentials and the "
    "gradient, so it needs more; with row blocks each is computed twice, one block at "
    "a time."
)


def relative_difference(dense: str, blocks: str) -> float:
    """Returns max |a - b| / max |a| of two saved gradients."""
    import numpy as np

    a, b = np.load(dense), np.load(blocks)
    return float(abs(a - b).max() / abs(a).max())


def loss(settings: dict):
    """A worker's task: forward and backward pass of NT-Xent.

    Settings are `form` (dense, blocks or broadcast), the batch `n`, the width `dim`,
    `block_rows`, and `save`, a file for the gradient. Reports the memory of the first
    call beyond that of a call on four images.
    """
    import tensorflow as tf

    from tfsimclr import losses
    from tfsimclr.modes import dry_run
    from tfsimclr.training import recorder

    def broadcast(z_a, z_b):
        z = losses.normalize(tf.concat([z_a, z_b], axis=0))
        logits = tf.reduce_sum(z[:, None] * z[None], axis=2) / 0.5  # of [2n, 2n, d]
        count = tf.shape(z)[0]
        logits = tf.linalg.set_diag(logits, tf.fill([count], tf.float32.min))
        labels = tf.roll(tf.range(count), count // 2, 0)
        return tf.reduce_mean(
            tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        )

    def ours(z_a, z_b):
        # The call on four images has fewer rows than a block.
        rows = min(settings.get("block_rows", 0), 2 * z_a.shape[0])
        return losses.nt_xent(z_a, z_b, 0.5, block_rows=rows)

    form = broadcast if settings["form"] == "broadcast" else ours

    @tf.function
    def gradient(z_a, z_b):
        with tf.GradientTape() as tape:
            tape.watch([z_a, z_b])
            value = form(z_a, z_b)
        return [value, *tape.gradient(value, [z_a, z_b])]

    def batch(n):
        return tf.unstack(tf.random.stateless_normal([2, n, settings["dim"]], [0, 1]))

    z_a, z_b = batch(settings["n"])
    gradient(*batch(4))
    base = dry_run.reset_peak()
    value, *gradients = [x.numpy() for x in gradient(z_a, z_b)]
    reported = {"bytes": recorder.peak_memory() - base, "value": float(value)}
    if "save" in settings:
        import numpy as np

        np.save(settings["save"], np.stack(gradients))
    return lambda: gradient(z_a, z_b)[0].numpy() and None, reported
