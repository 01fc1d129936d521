"""NT-Xent at batch 4096: time and memory of the dense form and its alternatives."""

import os
import tempfile

import bench_tools

SIZES = {
    "full": {"n": 4096, "small": 256, "dim": 128, "block_rows": 512},
    "tiny": {"n": 64, "small": 16, "dim": 8, "block_rows": 32},
}


def measure(options) -> dict:
    sizes = SIZES[options.size]
    n, small, dim = sizes["n"], sizes["small"], sizes["dim"]
    matrix = 4 * (2 * n) ** 2
    shared, cube = {"n": n, "dim": dim}, {"n": small, "dim": dim}
    blocks = {"block_rows": sizes["block_rows"]}
    start = bench_tools.tensorflow_child
    with tempfile.TemporaryDirectory() as folder:
        files = [os.path.join(folder, name) for name in ("dense.npy", "blocks.npy")]
        with (
            start("loss", form="dense", save=files[0], **shared) as dense,
            start("loss", form="blocks", save=files[1], **shared, **blocks) as block,
            start("loss", form="dense", **cube) as small_dense,
            start("loss", form="broadcast", **cube) as broadcast,
        ):
            works = {"dense": dense, "blocks": block}
            works |= {"small": small_dense, "broadcast": broadcast}
            said = {name: work.ready() for name, work in works.items()}
            taken = bench_tools.rounds(works, options.pairs)
        difference = relative_difference(*files)
    rows = [
        bench_tools.row(
            f"NT-Xent, N = {small}, d = {dim}: speed",
            "the broadcast form",
            bench_tools.ratios(taken["broadcast"], taken["small"]),
            least=1.0,
        ),
        bench_tools.row(
            f"NT-Xent, N = {small}, d = {dim}: peak memory",
            "the broadcast form",
            [said["small"]["bytes"] / said["broadcast"]["bytes"]],
            most=1.0,
            form="{:.3f}x",
        ),
        bench_tools.row(
            f"NT-Xent, N = {n}, d = {dim}, dense: peak memory",
            f"one (2N, 2N) float32 matrix, {matrix / 1e6:.0f} MB",
            [said["dense"]["bytes"] / matrix],
        ),
        bench_tools.row(
            f"the same with --loss_block_rows={blocks['block_rows']}: peak memory",
            "the same matrix",
            [said["blocks"]["bytes"] / matrix],
            most=1.0,
        ),
        bench_tools.row(
            "the same: speed",
            "the dense form",
            bench_tools.ratios(taken["dense"], taken["blocks"]),
        ),
        bench_tools.row(
            "the same: gradient, largest difference relative to the largest entry",
            "the dense form",
            [difference],
            most=1e-5,
            form="{:.1e}",
        ),
    ]
    return {"rows": rows, "paragraphs": [PARAGRAPH], "clock": "wall"}


PARAGRAPH = (
    "Memory is the peak of a fresh process above what it had after the same call on "
    "four images. Wanted was at most 1.5 matrices, or less than one by row blocks. The "
    "dense form holds the similarities, their exponentials and the gradient, so it "
    "needs more; row blocks compute them twice and hold one block."
)


def relative_difference(dense: str, blocks: str) -> float:
    """Returns max |a - b| / max |a| of two saved gradients."""
    import numpy as np

    a, b = np.load(dense), np.load(blocks)
    return float(abs(a - b).max() / abs(a).max())


def loss(given):
    """Forward and backward of NT-Xent: ours, in blocks, or the broadcast form.

    Says how much memory the first call took above that of a tiny one.
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
        rows = given.get("block_rows", 0)
        # The warm call has fewer rows than a block.
        rows = min(rows, 2 * z_a.shape[0])
        return losses.nt_xent(z_a, z_b, 0.5, block_rows=rows)

    form = broadcast if given["form"] == "broadcast" else ours

    @tf.function
    def gradient(z_a, z_b):
        with tf.GradientTape() as tape:
            tape.watch([z_a, z_b])
            value = form(z_a, z_b)
        return [value, *tape.gradient(value, [z_a, z_b])]

    def batch(n):
        return tf.unstack(tf.random.stateless_normal([2, n, given["dim"]], [0, 1]))

    z_a, z_b = batch(given["n"])
    gradient(*batch(4))
    base = dry_run.reset_peak()
    found = [x.numpy() for x in gradient(z_a, z_b)]
    about = {"bytes": recorder.peak_memory() - base, "value": float(found[0])}
    if "save" in given:
        import numpy as np

        np.save(given["save"], np.stack(found[1:]))
    return lambda: gradient(z_a, z_b)[0].numpy() and None, about
