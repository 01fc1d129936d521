"""Evaluating features: our linear classifier and k-NN against scikit-learn's."""

import importlib.util

from bench import harness

TEST_SHARE = 20  # one of so many images is for the test
SIZES = {
    "full": {
        "images": 100_000,
        "dim": 512,
        "classes": 10,
        "distance": 0.11,
        "epochs": 100,
        "neighbours": 200,
    },
    "tiny": {
        "images": 400,
        "dim": 16,
        "classes": 4,
        "distance": 0.5,
        "epochs": 3,
        "neighbours": 10,
    },
}
DECAY = 0.85
BATCH = 256
# Kind of features -> learning rate, the best of four.
RATES = {"round": 3e-4, "encoder": 3e-2}
L_BFGS = "LogisticRegression (L-BFGS to convergence)"
# Kind of features, scikit-learn's form, its name in the report, and our forms with
# their names.
GROUPS: tuple[tuple[str, str, str, dict[str, str]], ...] = (
    (
        "encoder",
        "sklearn_linear",
        L_BFGS,
        {
            "linear": "linear, {epochs} epochs",
            "chosen": "the same and the choice among four learning rates",
        },
    ),
    (
        "round",
        "sklearn_linear",
        L_BFGS,
        {
            "linear": "linear, {epochs} epochs",
            "batches": "only gathering the batches of {epochs} epochs",
        },
    ),
    (
        "round",
        "sklearn_knn",
        "KNeighborsClassifier (brute force, all cores)",
        {"knn": "kNN, k = {neighbours}"},
    ),
)
TARGETS = {"linear": 1.0, "knn": 1.0}


def measure(options) -> dict:
    if importlib.util.find_spec("sklearn") is None:
        return {"rows": [], "skipped": ["scikit-learn is not installed."]}
    sizes = SIZES[options.size]
    what = f"{sizes['images']:,} features of {sizes['dim']}"
    rows, accuracies = [], []
    for kind, theirs, against, ours in GROUPS:
        settings = {**sizes, "kind": kind}
        tasks = {
            form: harness.tensorflow_worker("probe", form=form, **settings)
            for form in (*ours, theirs)
        }
        with harness.workers(tasks):
            timings = harness.measure_rounds(tasks, options.pairs, warm_up=0)
        other = timings[theirs][0]
        how = f" and {other['iterations']} iterations" if "iterations" in other else ""
        for form, name in ours.items():
            name = f"{kind}: {name.format(**sizes)}"
            values = harness.ratios(timings[theirs], timings[form])
            least = TARGETS.get(form)
            rows.append(
                harness.row(f"{what}, {name}, speed", against, values, least=least)
            )
            if form != "batches":
                own = timings[form][0]
                accuracies.append(
                    f"{name}: top-1 {own['top1']:.2%} in {own['wall']:.1f} s, "
                    f"scikit-learn {other['top1']:.2%} in {other['wall']:.1f} s{how}"
                )
    test = sizes["images"] // TEST_SHARE
    matrix_bytes = 4 * test * (sizes["images"] - test)
    rows.append(
        harness.row(
            "the same kNN: peak memory beyond the features",
            f"the matrix of all similarities, {matrix_bytes / 1e6:.0f} MB",
            [timing["bytes"] / matrix_bytes for timing in timings["knn"]],
            most=1.0,
        )
    )
    paragraphs = [
        f"Synthetic features of {sizes['classes']} overlapping classes, float32; one "
        f"of {TEST_SHARE} is for the test. {'; '.join(accuracies)}.",
        "`round` features vary equally in all directions, the best case for L-BFGS; in "
        f"`encoder` features the k-th direction varies as k^-{2 * DECAY:.1f}, and they "
        "end in ReLU, like the h of our ResNets. We follow the protocol of the papers, "
        "epochs of small steps: it reads the features once per epoch whatever their "
        "spectrum, L-BFGS twice per iteration. Where L-BFGS converges in less time "
        "than reading the features takes, no such classifier can be faster.",
    ]
    return {"rows": rows, "paragraphs": paragraphs, "clock": "wall"}


def synthetic_features(settings: dict):
    """Returns features of overlapping classes: `(train, labels, test, labels)`."""
    import numpy as np

    rng = np.random.default_rng(0)
    count, width, classes = (settings[name] for name in ("images", "dim", "classes"))
    centres = rng.normal(size=(classes, width)).astype("float32")
    labels = rng.integers(0, classes, count)
    x = rng.normal(size=(count, width)).astype("float32")
    x += settings["distance"] * centres[labels]
    if settings["kind"] == "encoder":
        x *= np.arange(1, width + 1, dtype="float32") ** -DECAY
        rotation, _ = np.linalg.qr(rng.normal(size=(width, width)))
        x = np.maximum(x @ rotation.astype("float32"), 0)
    test = count // TEST_SHARE
    return x[test:], labels[test:], x[:test], labels[:test]


def probe(settings: dict):
    """A worker's task: a linear classifier or k-NN, ours or scikit-learn's.

    Reports top-1 and the peak of memory beyond what was in use before.
    """
    import numpy as np

    from tfsimclr.evaluation import knn, linear
    from tfsimclr.modes import dry_run
    from tfsimclr.training import recorder

    x, y, test, labels = synthetic_features(settings)
    classes, k = settings["classes"], settings["neighbours"]
    training = {"epochs": settings["epochs"], "batch_size": BATCH}
    reported: dict = {}

    def classify(rate=RATES[settings["kind"]]):
        layer = linear.linear_classifier(x, y, classes, learning_rate=rate, **training)
        return np.argmax(linear.predict(layer, test), axis=1)

    def choose_and_classify():
        return classify(linear.select_learning_rate(x, y, classes, 0, **training))

    def gather_batches():
        import tensorflow as tf

        features = tf.constant(x)

        @tf.function
        def read(order):
            total = tf.zeros([])
            for step in tf.range(tf.shape(order)[0]):
                total += tf.gather(features, order[step])[0, 0]
            return total

        steps = settings["epochs"] * -(-len(x) // BATCH)
        order = np.random.default_rng(0).integers(0, len(x), (steps, BATCH))
        read(tf.constant(order, tf.int32)).numpy()
        return labels

    def nearest_neighbours():
        return np.argmax(knn.knn_votes(x, y, test, classes, k), axis=1)

    def sklearn_linear():
        from sklearn import linear_model

        model = linear_model.LogisticRegression(max_iter=1000).fit(x, y)
        reported["iterations"] = int(model.n_iter_[0])
        return model.predict(test)

    def sklearn_knn():
        from sklearn import neighbors, preprocessing

        # Between rows of length one, distances have the order of cosines.
        unit, unit_test = preprocessing.normalize(x), preprocessing.normalize(test)
        model = neighbors.KNeighborsClassifier(
            k,
            algorithm="brute",
            n_jobs=-1,
            weights=lambda d: np.exp((1 - d * d / 2) / 0.1),
        )
        return model.fit(unit, y).predict(unit_test)

    forms = {
        "linear": classify,
        "chosen": choose_and_classify,
        "batches": gather_batches,
        "knn": nearest_neighbours,
        "sklearn_linear": sklearn_linear,
        "sklearn_knn": sklearn_knn,
    }

    def task():
        base = dry_run.reset_peak()
        predictions = forms[settings["form"]]()
        top1 = float(np.mean(predictions == labels))
        return {"top1": top1, "bytes": recorder.peak_memory() - base, **reported}

    return task, {}
