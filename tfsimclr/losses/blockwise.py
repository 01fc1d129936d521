"""Log-sum-exp over the rows of a similarity matrix, all at once or in blocks."""

import tensorflow as tf

from tfsimclr.errors import UserError


def log_sum_exp(anchors, candidates, temperature, views, block_rows):
    """Returns ln sum_j exp(similarity_ij / temperature) of every anchor i.

    The sum leaves out j = i and, with `views` above 1, all views of the image of i.

    Args:
        anchors: Rows of length one, `[V n, d]` float32; rows i, i + n, i + 2 n, ... are
            the views of an image.
        candidates: Rows of length one, `[V n, d]` float32, in the same order.
        temperature: Positive scalar.
        views: 1, or V, to leave out all views of the anchor's image.
        block_rows: 0 computes the whole `[V n, V n]` matrix; otherwise this many rows
            at a time, in the gradient too. Must divide V n.

    Returns:
        `[V n]`, float32.

    Raises:
        UserError: If block_rows does not divide V n.
    """

    def logits_of(rows, first, candidates):
        logits = tf.matmul(rows, candidates, transpose_b=True) / temperature
        count = tf.shape(candidates)[0]
        row = first + tf.range(tf.shape(rows)[0])[:, None]
        column = tf.range(count)[None]
        excluded = column == row
        if views > 1:
            n = count // views
            excluded = tf.math.floormod(column, n) == tf.math.floormod(row, n)
        # Float32's lowest value has weight zero in the softmax. -inf would too, but
        # gives NaN where every candidate is excluded (n = 1 without positives).
        return tf.where(excluded, tf.float32.min, logits)

    if not block_rows:
        # A plain sum of exp(1 / temperature) overflows at temperatures below 0.012.
        return tf.reduce_logsumexp(logits_of(anchors, 0, candidates), axis=1)
    count = anchors.shape[0]
    if count is not None and count % block_rows:
        raise UserError(
            f"block_rows must divide the {count} rows of all views, got {block_rows}."
        )

    @tf.custom_gradient
    def of_blocks(anchors, candidates):
        # The gradient recomputes the softmax: storing it would need [V n, V n] floats.
        blocks = tf.reshape(anchors, [-1, block_rows, anchors.shape[1]])
        firsts = tf.range(tf.shape(blocks)[0]) * block_rows
        sums = tf.map_fn(
            lambda block: tf.reduce_logsumexp(logits_of(*block, candidates), axis=1),
            (blocks, firsts),
            fn_output_signature=tf.TensorSpec([block_rows], tf.float32),
            parallel_iterations=1,
        )

        def gradient(upstream):
            upstream = tf.reshape(upstream, [-1, block_rows]) / temperature

            def add(i, of_anchors, of_candidates):
                rows = blocks[i]
                logits = logits_of(rows, firsts[i], candidates)
                share = tf.exp(logits - sums[i][:, None]) * upstream[i][:, None]
                return (
                    i + 1,
                    of_anchors.write(i, tf.matmul(share, candidates)),
                    of_candidates + tf.matmul(share, rows, transpose_a=True),
                )

            steps = tf.shape(blocks)[0]
            of_anchors = tf.TensorArray(
                tf.float32, size=steps, element_shape=[block_rows, anchors.shape[1]]
            )
            _, of_anchors, of_candidates = tf.while_loop(
                lambda i, *_: i < steps,
                add,
                (0, of_anchors, tf.zeros_like(candidates)),
                parallel_iterations=1,
            )
            return of_anchors.concat(), of_candidates

        return tf.reshape(sums, [-1]), gradient

    return of_blocks(anchors, candidates)
