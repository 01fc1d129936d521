"""The training step that every method shares."""

import keras
import numpy as np
import tensorflow as tf

from tfsimclr.distribution import replicas
from tfsimclr.errors import UserError
from tfsimclr.methods import inputs
from tfsimclr.networks.momentum import MomentumNetwork
from tfsimclr.networks.names import feature_names
from tfsimclr.networks.pieces import in_pieces
from tfsimclr.networks.remat import Rematerialized
from tfsimclr.views import pending, random_view
from tfsimclr.views.random_view import Rows

PARTS = ("encoder", "head", "views", "predictor", "local_views")
OPTIONAL_PARTS = ("predictor", "local_views")


class Outputs:
    """What the networks make of one view of the whole batch, each `[n, d]`.

    In a training step on several devices the rows of the other replicas are gathered
    when an output is first used.

    Attributes:
        h: Output of the encoder, in its own type.
        z: Output of the head, in its own type.
        p: Output of the predictor, or z where there is none, in float32.

    Args:
        of_replica: h, z and p of the rows of this replica.
        training: Whether to gather; in evaluation every replica has the whole batch.
    """

    def __init__(self, of_replica, training: bool):
        self._of_replica = tuple(of_replica)
        self._gathered = {} if training else dict(enumerate(self._of_replica))

    @property
    def h(self):
        return self._of_batch(0)

    @property
    def z(self):
        return self._of_batch(1)

    @property
    def p(self):
        return self._of_batch(2)

    # Not functools.cached_property: in Python 3.11 and before it holds a lock, and the
    # threads of the replicas, which meet in `gather`, would wait for each other.
    def _of_batch(self, position: int):
        if position not in self._gathered:
            rows = replicas.gather(self._of_replica[position])
            self._gathered[position] = rows
        return self._gathered[position]


class Method(keras.Model):
    """An encoder and a projection head, trained on random views of images.

    A subclass defines the loss in `objective`. If need be it also overrides
    `prepare_batch` (what the loss is computed on), `learned_variables` (what the
    gradient moves) and `after_update` (what follows an update). `metric_names` names
    the scalars that `objective` returns beside the loss.

    `evaluate` and the validation of `fit` compute the same loss on fixed views, with
    batch norm in inference mode, and change nothing.

    Every random draw is a function of `seed` and `step`. The step counts batches, not
    updates (float16 skips some updates), so a restored model resumes exactly.

    Made in the scope of a `tf.distribute` strategy, it trains on all its devices: each
    gets a part of the batch, and the step is that of one device with the whole batch.

    Args:
        encoder: Images `[n, H, W, 3]` in 0-1 -> h `[n, d]`.
        head: h -> `[h, head_1, ..., z]`.
        views: Callable (images `[n, H, W, 3]` in 0-255, seed `[2]`) -> view in 0-1.
        seed: Integer.
        predictor: None, or a head that follows z.
        num_views: Views of each image, at least 2, from `views`.
        num_local_views: Further, smaller views of each image, from `local_views`
            (multi-crop).
        local_views: Callable like `views`; None takes `views.local_views()`: half the
            size, crops of 5 to 14 % of the image. Only with `num_local_views`.
        microbatch_size: Images that pass through the networks at a time; a divisor of
            the batch size. 0 is the whole batch. Loss and gradient are those of the
            whole batch, except that batch norm sees one micro-batch at a time.
        remat: Whether the backward pass computes each residual block of the encoder
            again, instead of storing its feature maps (gradient checkpointing).
        sync_batch_norm: On several devices (`tf.distribute`), whether batch norm in
            training uses the statistics of the whole batch, or of the images of each
            device.
        **kwargs: Arguments of `keras.Model`.
    """

    metric_names: tuple[str, ...] = ()
    # Whether `objective` takes any number of views.
    takes_many_views = False
    # Whether the step needs the index of every image, in place of labels.
    needs_index = False
    takes_microbatches = True

    def __init__(
        self,
        encoder,
        head,
        views,
        seed: int = 0,
        predictor=None,
        num_views: int = 2,
        num_local_views: int = 0,
        local_views=None,
        microbatch_size: int = 0,
        remat: bool = False,
        sync_batch_norm: bool = True,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if microbatch_size and not self.takes_microbatches:
            raise UserError(
                f"{type(self).__name__} trains on whole batches, got microbatch_size="
                f"{microbatch_size}."
            )
        self._check_views(num_views, num_local_views, local_views)
        if predictor is not None and predictor.dim != head.dim:
            raise UserError(
                "The predictor must have the width of the head's output, "
                f"dim={head.dim}, got dim={predictor.dim}."
            )
        self.encoder = encoder
        self.head = head
        self.views = views
        self.seed = seed
        self.predictor = predictor
        self.num_views = num_views
        self.num_local_views = num_local_views
        if num_local_views and local_views is None:
            local_views = views.local_views()
        self.local_views = local_views
        self.microbatch_size = microbatch_size
        self.remat = remat
        self.sync_batch_norm = sync_batch_norm
        # No Keras object, so the encoder is not tracked and saved a second time.
        self._rematerialized = Rematerialized(encoder) if remat else None
        if not head.built:
            head.build(encoder.output_shape)
        if predictor is not None and not predictor.built:
            predictor.build((None, head.dim))
        self.step = self.add_weight(
            shape=(), dtype="int64", initializer="zeros", trainable=False, name="step"
        )
        self.metric_trackers = {
            name: _Mean(name=name)
            for name in ("loss", "gradient_norm", *self.metric_names)
        }
        self.metric_trackers["skipped_steps"] = _Sum(name="skipped_steps")
        self._features = tf.function(self._features_of_batch, reduce_retracing=True)
        self.built = True

    def _check_views(self, num_views: int, num_local_views: int, local_views) -> None:
        if num_views < 2 or num_local_views < 0:
            raise UserError(
                "num_views must be at least 2 and num_local_views at least 0, got "
                f"num_views={num_views} and num_local_views={num_local_views}."
            )
        if not self.takes_many_views and (num_views, num_local_views) != (2, 0):
            raise UserError(
                f"{type(self).__name__} takes two views of each image, got num_views="
                f"{num_views} and num_local_views={num_local_views}."
            )
        if local_views is not None and not num_local_views:
            raise UserError("local_views needs num_local_views of at least 1, got 0.")

    def prepare_batch(self, images, labels, step=None):
        """Returns the arguments of `objective`; by default the views of the images.

        Args:
            images: `[n, H, W, 3]` in 0-255.
            labels: `[n]`, or None.
            step: Step of the views; None is the step of the training.
        """
        if step is None:
            return self.step_views(images, self.step)
        return self.random_views(images, step, self.num_views, self.num_local_views)

    def prepare_test_batch(self, images, labels):
        """Returns the arguments of `objective` in evaluation: fixed views.

        The views are a function of the seed and the images, so they are the same in
        every epoch. No step of the training has them.
        """
        # int64 because TensorFlow sums int32 on the CPU. Not a negative step: XLA folds
        # it into a seed differently. Runs have fewer than 2^30 steps.
        total = tf.reduce_sum(tf.cast(images, tf.int64))
        return self.prepare_batch(images, labels, 2**30 + total % (2**30 - 1))

    def objective(self, *views, training=True):
        """Returns the scalar loss and a dict of the scalars of `metric_names`.

        Args:
            *views: `num_views` views `[n, s, s, 3]` in 0-1, then `num_local_views`
                smaller ones. With `microbatch_size` they are `pending.PendingView`s in
                a training step, which only `pass_through` makes.
            training: Whether it is a training step, or evaluation without any update.
        """
        raise TypeError(f"{type(self).__name__} must define objective(*views).")

    @property
    def metrics(self):
        """The metrics of `fit`; `evaluate` returns the first ones, in this order."""
        # Without Keras's own mean of the loss, which is not updated here.
        names = ("loss", *self.metric_names, "gradient_norm", "skipped_steps")
        return [self.metric_trackers[name] for name in names]

    @property
    def learned_variables(self):
        """The variables that the gradient moves; not those of a momentum network."""
        return [v for n in self._online_networks() for v in n.trainable_variables]

    def _online_networks(self) -> list:
        """Returns the networks that views pass through in `project`."""
        return [self.encoder, self.head, *([self.predictor] if self.predictor else [])]

    def after_update(self, step):
        """Runs after the update of a step (0, 1, ...): moving averages, queues."""

    def call(self, images, training=False):
        """Returns `[h, head_1, ..., z]` of float images `[n, H, W, 3]` in 0-1."""
        inputs.check_float(images, "call")
        if training and self._rematerialized:
            if replicas.count() > 1:
                raise UserError("remat works on one device, got several.")
            h = self._rematerialized(images)
        else:
            h = self.encoder(images, training=training)
        return self.head(h, training=training)

    def project(self, *views, training=True) -> list[Outputs]:
        """Returns h, z and p of each view, each `[n, d]`.

        The views pass through the networks together: batch norm sees all of them.
        """

        def call(images):
            h, *_, z = self(images, training=training)
            p = self.predictor(z, training=training)[-1] if self.predictor else z
            return h, z, tf.cast(p, tf.float32)

        networks = self._online_networks()
        outputs = self.pass_through(call, networks, views, training=training)
        return [Outputs(of_view, training) for of_view in outputs]

    def pass_through(
        self, call, networks, views, order=None, training=True
    ) -> list[list]:
        """Returns what networks make of views that pass through them together.

        Args:
            call: Function: images `[m, s, s, 3]` in 0-1 -> list of `[m, d]`.
            networks: The layers that it calls.
            views: Views of one batch and one size, made or pending.
            order: None, or the rows of the whole batch in another order; each replica
                takes its part of it, and micro-batches and batch-norm groups are then
                made of these.
            training: Whether to pass the views in micro-batches.

        Returns:
            For each view the tensors that `call` returns, `[n, d]`, in this order; n is
            the number of images of this replica.
        """
        size, count = self.microbatch_size, len(views)
        if order is not None and replicas.count() > 1:
            n = len(order) // replicas.count()
            order = tf.constant(order)[replicas.index() * n :][:n]
            order = tf.ensure_shape(order, [n])
            views = [pending.gather(view) for view in views]
        if not size or not training:
            if order is not None:
                views = [tf.gather(view, order) for view in views]
            images = views[0] if count == 1 else tf.concat(views, axis=0)
            outputs = [tf.split(o, count) if count > 1 else [o] for o in call(images)]
            return [list(of_view) for of_view in zip(*outputs, strict=True)]
        n = pending.batch_size(views[0]) if order is None else len(order)
        if n is None or n % size:
            raise UserError(
                f"microbatch_size={size} must divide the batch of every device, got "
                f"{n or 'batches of any size'}. Drop the remainder, or take another "
                "size."
            )

        def call_on_piece(index):
            rows = index * size + tf.range(size)
            rows = rows if order is None else tf.gather(order, rows)
            images = [pending.make_rows(view, rows) for view in views]
            outputs = [tf.split(o, count) for o in call(tf.concat(images, axis=0))]
            return [list(of_view) for of_view in zip(*outputs, strict=True)]

        outputs = in_pieces(call_on_piece, networks, n // size)  # [n / size, size, d]
        return tf.nest.map_structure(lambda o: tf.reshape(o, [n, o.shape[-1]]), outputs)

    def by_size(self, views) -> list[tuple]:
        """Returns the views in groups of one size: the large ones, the local ones."""
        groups = [tuple(views[: self.num_views]), tuple(views[self.num_views :])]
        return [group for group in groups if group]

    def fit(self, x=None, *args, **kwargs):
        """As `keras.Model.fit`, on images `[n, H, W, 3]` in 0-255."""
        inputs.check_0_255(x, "fit")
        validation = kwargs.get("validation_data")
        if isinstance(validation, tuple | list):
            validation = validation[0]
        inputs.check_0_255(validation, "fit(validation_data=...)")
        return super().fit(x, *args, **kwargs)

    def evaluate(self, x=None, *args, **kwargs):
        """As `keras.Model.evaluate`, on images `[n, H, W, 3]` in 0-255.

        It is the loss of the method on fixed views; see `test_step`.
        """
        inputs.check_0_255(x, "evaluate")
        is_split = not isinstance(x, tf.distribute.DistributedDataset)
        if is_split and self.distribute_strategy.num_replicas_in_sync > 1:
            # Keras would give each device a part of a batch, whose loss is another.
            raise UserError(
                "evaluate and validation_data need whole batches on every device. Load "
                "the model outside of the strategy's scope to evaluate it."
            )
        return super().evaluate(x, *args, **kwargs)

    def predict(self, x, *args, **kwargs):
        """As `keras.Model.predict`, of float images `[n, s, s, 3]` in 0-1.

        Returns `[h, head_1, ..., z]`. `features` takes images as they are.
        """
        inputs.check_0_1(x, "predict")
        return super().predict(x, *args, **kwargs)

    def train_step(self, data):
        batch = self.prepare_batch(*keras.utils.unpack_x_y_sample_weight(data)[:2])
        learned = self.learned_variables
        with replicas.separate_batch_norm(self._separates_batch_norm):
            with tf.GradientTape() as tape:
                loss, logs = self.objective(*batch)
                scaled_loss = self.optimizer.scale_loss(loss)
                if replicas.count() > 1:
                    scaled_loss /= replicas.count()
            gradients = replicas.total(tape.gradient(scaled_loss, learned))
        # The scaled value of 1 is the loss scale, which is 1 except in float16.
        scale = self.optimizer.scale_loss(tf.ones([]))
        norm = tf.cast(tf.linalg.global_norm(gradients), tf.float32) / scale
        if replicas.count() > 1:
            # The optimizer adds up what the replicas give it.
            gradients = [None if g is None else g / replicas.count() for g in gradients]
            if self._separates_batch_norm or self.microbatch_size:
                self._average_moving_statistics()
        self.optimizer.apply(gradients, learned)
        self.step.assign_add(1)
        self.after_update(self.step - 1)
        return self.update_metrics(norm, loss=loss, **logs)

    @property
    def _separates_batch_norm(self) -> bool:
        """Whether each replica's batch norm uses the images of the replica alone."""
        return not self.sync_batch_norm

    def _average_moving_statistics(self) -> None:
        """Gives all replicas the mean of their moving means and variances.

        All start a step with equal ones, and the update is linear, so this is the
        update by the mean of their statistics.
        """
        state = {
            id(v): v
            for network in self._networks()
            for v in network.non_trainable_variables
            if tf.as_dtype(v.dtype).is_floating
        }
        means = replicas.mean([tf.convert_to_tensor(v) for v in state.values()])
        for variable, value in zip(state.values(), means, strict=True):
            variable.assign(value)

    def _networks(self) -> list:
        """Returns all networks that a training step calls."""
        return self._online_networks()

    def test_step(self, data):
        """Returns the loss and the measures of held-out images; changes no weight."""
        images, labels, _ = keras.utils.unpack_x_y_sample_weight(data)
        batch = self.prepare_test_batch(images, labels)
        loss, logs = self.objective(*batch, training=False)
        values = {"loss": loss, **logs}
        # The last batch may be smaller and then counts less.
        count = tf.cast(tf.shape(images)[0], tf.float32)
        for name, value in values.items():
            self.metric_trackers[name].update_state(value, sample_weight=count)
        return {
            name: replicas.log_value(self.metric_trackers[name].result())
            for name in values
        }

    def export(self, filepath, format="tf_saved_model", verbose=None, **kwargs):
        """Exports `call`: images `[n, s, s, 3]` in 0-1 -> `[h, head_1, ..., z]`.

        As `keras.Model.export`, with an input of the size of a view by default.
        """
        size = self.views.image_size
        spec = keras.InputSpec(shape=(None, size, size, 3), dtype="float32")
        kwargs.setdefault("input_signature", [spec])
        return super().export(filepath, format, verbose, **kwargs)

    def random_views(
        self, images, step, count: int = 2, local: int = 0, rows: Rows | None = None
    ) -> tuple:
        """Returns `count` views of a batch at a step, then `local` local views.

        Each is `[n, s, s, 3]` in 0-1, with the size s of `views` or `local_views`.
        """
        # `views` may be any function of images and seed, on one device.
        of_whole = () if rows is None else (rows,)
        return tuple(
            views(images, seed, *of_whole)
            for views, seed in self._views_and_seeds(step, count, local)
        )

    def _views_and_seeds(self, step, count: int, local: int):
        key = tf.stack([tf.constant(self.seed, tf.int32), tf.cast(step, tf.int32)])
        for view in range(count + local):
            views = self.views if view < count else self.local_views
            yield views, tf.random.experimental.stateless_fold_in(key, view)

    def step_views(self, images, step) -> tuple:
        """Returns all views of a batch at a step, the local ones last.

        They are pending if the model is trained on micro-batches. The images of a
        replica get the views that they have in the whole batch.
        """
        counts = self.num_views, self.num_local_views
        rows = None
        if replicas.count() > 1:
            n = tf.shape(images)[0] if images.shape[0] is None else images.shape[0]
            first = replicas.index() * n
            rows = Rows(first + tf.range(n), replicas.count() * n)
        if not self.microbatch_size:
            return self.random_views(images, step, *counts, rows=rows)
        return tuple(
            pending.PendingView(views, images, seed, rows)
            for views, seed in self._views_and_seeds(step, *counts)
        )

    def two_views(self, images, step) -> tuple:
        """Returns the two views of a batch at a step, each `[n, s, s, 3]` in 0-1."""
        return self.random_views(images, step, 2)

    def update_metrics(self, gradient_norm, **values):
        """Adds a step's scalars to the epoch's means and returns the means."""
        finite = tf.math.is_finite(gradient_norm)
        # A skipped float16 step has no gradient norm; it is counted instead.
        self.metric_trackers["gradient_norm"].update_state(
            tf.where(finite, gradient_norm, 0.0), tf.cast(finite, tf.float32)
        )
        skipped = 1.0 - tf.cast(finite, tf.float32)
        self.metric_trackers["skipped_steps"].update_state(skipped)
        for name, value in values.items():
            self.metric_trackers[name].update_state(value)
        return {
            name: replicas.log_value(m.result())
            for name, m in self.metric_trackers.items()
        }

    def compile_from_config(self, config):
        self.compile(**keras.saving.deserialize_keras_object(config))
        # Keras would build the optimizer for a momentum network's variables too.
        self.optimizer.build(self.learned_variables)

    def features(self, images, batch_size: int = 256) -> dict[str, np.ndarray]:
        """Returns the un-augmented features of every layer.

        Args:
            images: `[n, H, W, 3]` in 0-255, uint8 or float; resized to the views' size.
                Or batches of them, as `fit` takes: a `tf.data.Dataset`, a `PyDataset`,
                a generator, or another iterable. Labels are left out.
            batch_size: Images at a time, of an array.

        Returns:
            `{"h": [n, d], "head_1": ..., "z": ...}`, float32.

        Raises:
            UserError: If there is no image, batches have no end, or float images are in
                0-1.
        """
        inputs.check_0_255(images, "features")
        parts = [
            [layer.numpy() for layer in self._features(batch)]
            for batch in inputs.batches(images, batch_size)
        ]
        if not parts:
            raise UserError("features needs at least one image, got none.")
        names = feature_names(len(parts[0]) - 1)
        layers = (np.concatenate(layer) for layer in zip(*parts, strict=True))
        return dict(zip(names, layers, strict=True))

    def _features_of_batch(self, images):
        view = random_view.plain_view(images, self.views.image_size)
        return [tf.cast(layer, tf.float32) for layer in self(view, training=False)]

    def get_config(self):
        parts = {name: getattr(self, name) for name in PARTS}
        config = {
            name: keras.saving.serialize_keras_object(part)
            for name, part in parts.items()
            if part is not None or name not in OPTIONAL_PARTS
        }
        config["seed"] = self.seed
        if self.takes_many_views:
            config["num_views"] = self.num_views
            config["num_local_views"] = self.num_local_views
        if self.takes_microbatches:
            config["microbatch_size"] = self.microbatch_size
        config["remat"] = self.remat
        config["sync_batch_norm"] = self.sync_batch_norm
        return {**super().get_config(), **config}

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        for name in PARTS:
            if name in config:
                config[name] = keras.saving.deserialize_keras_object(config[name])
        return cls(**config)


class _OnEveryReplica(keras.metrics.Metric):
    """A metric to which every replica of a step adds the same number.

    Keras would add up the replicas' numbers: a sum would be N times too large.
    """

    def add_variable(self, shape, initializer, dtype=None, aggregation=None, name=None):
        first = "only_first_replica"
        return super().add_variable(shape, initializer, dtype, first, name)


class _Mean(_OnEveryReplica, keras.metrics.Mean):
    pass


class _Sum(_OnEveryReplica, keras.metrics.Sum):
    pass


class MomentumMethod(Method):
    """A method with an exponential moving average (EMA) of its encoder and head.

    The average is MoCo's momentum encoder and BYOL's target network. `target` returns
    its z of views, without a gradient.

    Args:
        encoder: As `Method`.
        head: As `Method`.
        views: As `Method`.
        ema_decay: EMA decay in 0-1, or None for a method without a moving average.
        ema_schedule: `constant`, or `cosine`, which raises the decay to 1.
        total_steps: Steps of the run, which `cosine` needs for training.
        **kwargs: Arguments of `Method`.
    """

    def __init__(
        self,
        encoder,
        head,
        views,
        ema_decay: float | None,
        ema_schedule: str = "constant",
        total_steps: int | None = None,
        **kwargs,
    ):
        super().__init__(encoder, head, views, **kwargs)
        self.ema_decay = ema_decay
        self.ema_schedule = ema_schedule
        self.total_steps = total_steps
        # Keras names saved weights by attribute: `average` and its `twins` are the
        # names in .keras files since the first version.
        self.average = None
        if ema_decay is not None:
            self.average = MomentumNetwork(
                [encoder, head], ema_decay, ema_schedule, total_steps
            )

    def target(self, *views, order=None, training=True) -> list:
        """Returns z of the average of each view of the whole batch, `[n, d]`.

        Args:
            *views: As in `project`.
            order: As in `pass_through`.
            training: As in `project`.
        """

        def call(images):
            return [self.average(images, training=training)]

        networks = self.average.target()
        outputs = self.pass_through(call, networks, views, order, training)
        keys = [tf.stop_gradient(z) for (z,) in outputs]
        return [replicas.gather(z) for z in keys] if training else keys

    def _networks(self) -> list:
        averages = self.average.target() if self.average else []
        return [*super()._networks(), *averages]

    def after_update(self, step):
        if self.average:
            self.average.update(step)

    def get_config(self):
        return {
            **super().get_config(),
            "ema_decay": self.ema_decay,
            "ema_schedule": self.ema_schedule,
            "total_steps": self.total_steps,
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        if "ema" in config:  # version 0.1: total_steps alone meant the cosine
            config["ema_decay"] = config.pop("ema")
            cosine = config["total_steps"] is not None
            config["ema_schedule"] = "cosine" if cosine else "constant"
        return super().from_config(config)
