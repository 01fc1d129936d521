"""The training step that every method shares."""

import keras
import numpy as np
import tensorflow as tf

from tfsimclr import augment
from tfsimclr.names import feature_names

PARTS = ("encoder", "head", "views", "predictor")


class Method(keras.Model):
    """An encoder and a head, trained on pairs of views; a method fills the hooks.

    A subclass says what is optimised in `objective`, which variables that moves in
    `learned_variables`, and what follows an update in `after_update`. It names the
    scalars it logs in `logged`, and in `defaults` what settings that are left open mean
    for it on the command line. The step itself is written once, here.

    Every random draw is a function of `seed` and `step`, the number of batches seen
    (not of updates applied: float16 skips some), so a restored model goes on exactly.

    Args:
        encoder: Images `[n, H, W, 3]` in 0-1 -> h `[n, d]`.
        head: h -> `[h, head_1, ..., z]`.
        views: Callable (images `[n, H, W, 3]` in 0-255, seed `[2]`) -> view in 0-1.
        seed: Integer.
        predictor: None, or a head that follows z where a method predicts.
        **kwargs: Of `keras.Model`.
    """

    logged: tuple[str, ...] = ()
    defaults: dict = {}

    def __init__(self, encoder, head, views, seed: int = 0, predictor=None, **kwargs):
        super().__init__(**kwargs)
        self.encoder = encoder
        self.head = head
        self.views = views
        self.seed = seed
        self.predictor = predictor
        if not head.built:
            head.build(encoder.output_shape)
        if predictor is not None and not predictor.built:
            predictor.build((None, head.dim))
        self.step = self.add_weight(
            shape=(), dtype="int64", initializer="zeros", trainable=False, name="step"
        )
        self.meters = {
            name: keras.metrics.Mean(name=name)
            for name in ("loss", "gradient_norm", *self.logged)
        }
        self.meters["skipped_steps"] = keras.metrics.Sum(name="skipped_steps")
        self._features = tf.function(self._features_of_batch, reduce_retracing=True)
        self.built = True

    def inputs(self, images, labels):
        """Returns what `objective` takes of a batch: as a rule two views of it."""
        return self.pair(images, self.step)

    def objective(self, view_a, view_b):
        """Returns the scalar loss and a dict of the scalars named in `logged`."""
        raise TypeError(f"{type(self).__name__} must define objective(view_a, view_b).")

    @property
    def learned_variables(self):
        """The variables that the gradient moves; not those of a twin."""
        networks = [self.encoder, self.head]
        networks += [self.predictor] if self.predictor else []
        return [v for network in networks for v in network.trainable_variables]

    def after_update(self):
        """Runs after every update; the place for moving averages and queues."""

    def call(self, images, training=False):
        """Returns `[h, head_1, ..., z]` of images `[n, H, W, 3]` in 0-1."""
        return self.head(self.encoder(images, training=training), training=training)

    def predicted(self, view):
        """Returns z of a view, or what the predictor makes of it, `[n, d]` float32."""
        z = self(view, training=True)[-1]
        if self.predictor:
            z = self.predictor(z, training=True)[-1]
        return tf.cast(z, tf.float32)

    def train_step(self, data):
        inputs = self.inputs(*keras.utils.unpack_x_y_sample_weight(data)[:2])
        with tf.GradientTape() as tape:
            loss, logs = self.objective(*inputs)
            scaled_loss = self.optimizer.scale_loss(loss)
        learned = self.learned_variables
        gradients = tape.gradient(scaled_loss, learned)
        # The scale of 1.0 is the loss scale: 1 but under float16.
        scale = self.optimizer.scale_loss(tf.ones([]))
        norm = tf.cast(tf.linalg.global_norm(gradients), tf.float32) / scale
        self.optimizer.apply(gradients, learned)
        self.step.assign_add(1)
        self.after_update()
        return self.record(norm, loss=loss, **logs)

    def pair(self, images, step):
        """Returns the two views of a batch at a step, each `[n, s, s, 3]` in 0-1."""
        key = tf.stack([tf.constant(self.seed, tf.int32), tf.cast(step, tf.int32)])
        return tuple(
            self.views(images, tf.random.experimental.stateless_fold_in(key, view))
            for view in (0, 1)
        )

    def record(self, gradient_norm, **values):
        """Adds a step's scalars to the epoch's means and returns those."""
        finite = tf.math.is_finite(gradient_norm)
        # A skipped float16 step has no gradient norm; it is counted instead.
        self.meters["gradient_norm"].update_state(
            tf.where(finite, gradient_norm, 0.0), tf.cast(finite, tf.float32)
        )
        self.meters["skipped_steps"].update_state(1.0 - tf.cast(finite, tf.float32))
        for name, value in values.items():
            self.meters[name].update_state(value)
        return {name: meter.result() for name, meter in self.meters.items()}

    def compile_from_config(self, config):
        self.compile(**keras.saving.deserialize_keras_object(config))
        # Keras would build it for all variables, a twin's among them.
        self.optimizer.build(self.learned_variables)

    def features(self, images, batch_size: int = 256) -> dict[str, np.ndarray]:
        """Returns the un-augmented features of every layer.

        Args:
            images: `[n, H, W, 3]` in 0-255, uint8 or float; resized to the views' size.
            batch_size: Images at a time.

        Returns:
            `{"h": [n, d], "head_1": ..., "z": ...}`, float32.
        """
        if not len(images):
            raise ValueError(f"features needs at least one image, got {len(images)}.")
        parts = [
            [layer.numpy() for layer in self._features(images[i : i + batch_size])]
            for i in range(0, len(images), batch_size)
        ]
        names = feature_names(len(parts[0]) - 1)
        layers = (np.concatenate(layer) for layer in zip(*parts, strict=True))
        return dict(zip(names, layers, strict=True))

    def _features_of_batch(self, images):
        layers = self(augment.plain_view(images, self.views.image_size), training=False)
        return [tf.cast(layer, tf.float32) for layer in layers]

    def get_config(self):
        parts = {name: getattr(self, name) for name in PARTS}
        parts = {k: keras.saving.serialize_keras_object(v) for k, v in parts.items()}
        if not self.predictor:
            del parts["predictor"]  # not every method takes one
        return {**super().get_config(), **parts, "seed": self.seed}

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        for name in PARTS:
            if name in config:
                config[name] = keras.saving.deserialize_keras_object(config[name])
        return cls(**config)
