"""Evaluation of features: our linear classifier and neighbours, and scikit-learn's."""

import contextlib
import importlib.util

import bench_tools

TEST = 20  # one of so many images
SIZES = {
    "full": {
        **{"images": 100_000, "dim": 512, "classes": 10, "distance": 0.11},
        **{"epochs": 100, "neighbours": 200},
    },
    "tiny": {
        **{"images": 400, "dim": 16, "classes": 4, "distance": 0.5},
        **{"epochs": 3, "neighbours": 10},
    },
}
DECAY = 0.85
BATCH = 256
RATES = {"round": 3e-4, "encoder": 3e-2}  # each the best of four
L_BFGS = "LogisticRegression (L-BFGS to convergence)"
# Features, what of scikit-learn's, its name in a report, and what of ours with theirs.
GROUPS = (
    (
        *("encoder", "sklearn_linear", L_BFGS),
        {
            "linear": "linear, {epochs} epochs",
            "chosen": "the same and the choice among four learning rates",
        },
    ),
    (
        *("round", "sklearn_linear", L_BFGS),
        {
            "linear": "linear, {epochs} epochs",
            "batches": "only gathering the batches of {epochs} epochs",
        },
    ),
    (
        *("round", "sklearn_knn", "KNeighborsClassifier (brute force, all cores)"),
        {"knn": "kNN, k = {neighbours}"},
    ),
)
WANTED = {"linear": 1.0, "knn": 1.0}


def measure(options) -> dict:
    if importlib.util.find_spec("sklearn") is None:
        return {"rows": [], "skipped": ["scikit-learn is not installed."]}
    sizes = SIZES[options.size]
    what = f"{sizes['images']:,} features of {sizes['dim']}"
    rows, words = [], []
    for kind, theirs, against, ours in GROUPS:
        settings = {**sizes, "kind": kind}
        with contextlib.ExitStack() as stack:
            works = {}
            for form in (*ours, theirs):
                child = bench_tools.tensorflow_child("probe", form=form, **settings)
                works[form] = stack.enter_context(child)
            for work in works.values():
                work.ready()
            taken = bench_tools.rounds(works, options.pairs, warm=0)
        other = taken[theirs][0]
        how = f" and {other['iterations']} iterations" if "iterations" in other else ""
        for form, name in ours.items():
            name = f"{kind}: {name.format(**sizes)}"
            values = bench_tools.ratios(taken[theirs], taken[form])
            least = WANTED.get(form)
            rows.append(
                bench_tools.row(f"{what}, {name}, speed", against, values, least=least)
            )
            if form != "batches":
                mine = taken[form][0]
                words.append(
                    f"{name}: top-1 {mine['top1']:.2%} in {mine['wall']:.1f} s, "
                    f"scikit-learn {other['top1']:.2%} in {other['wall']:.1f} s{how}"
                )
    test = sizes["images"] // TEST
    whole = 4 * test * (sizes["images"] - test)
    rows.append(
        bench_tools.row(
            "the same kNN: peak memory above the features'",
            f"the matrix of all similarities, {whole / 1e6:.0f} MB",
            [took["bytes"] / whole for took in taken["knn"]],
            most=1.0,
        )
    )
    paragraphs = [
        f"Made features of {sizes['classes']} overlapping classes, float32; one of "
        f"{TEST} is for the test. {'; '.join(words)}.",
        "Of `round` features all directions vary alike, the best case of L-BFGS; of "
        f"`encoder` ones the k-th direction varies as k^-{2 * DECAY:.1f}, and they end "
        "in ReLU, as the h of our ResNets. What we run is the protocol of the papers, "
        "epochs of small steps: it reads the features once an epoch however round they "
        "are, L-BFGS twice an iteration. Where it converges in fewer iterations than "
        "that takes only to read, no such classifier can be faster.",
    ]
    return {"rows": rows, "paragraphs": paragraphs, "clock": "wall"}


def features(given):
    """Features of overlapping classes: `(train, labels, test, labels)`, float32."""
    import numpy as np

    draw = np.random.default_rng(0)
    count, width, classes = given["images"], given["dim"], given["classes"]
    centres = draw.normal(size=(classes, width)).astype("float32")
    labels = draw.integers(0, classes, count)
    x = draw.normal(size=(count, width)).astype("float32")
    x += given["distance"] * centres[labels]
    if given["kind"] == "encoder":
        x *= np.arange(1, width + 1, dtype="float32") ** -DECAY
        turn, _ = np.linalg.qr(draw.normal(size=(width, width)))
        x = np.maximum(x @ turn.astype("float32"), 0)
    test = count // TEST
    return x[test:], labels[test:], x[:test], labels[:test]


def probe(given):
    """A linear classifier or neighbours, ours or scikit-learn's; says its top-1."""
    import numpy as np

    from tfsimclr.evaluation import linear
    from tfsimclr.modes import dry_run
    from tfsimclr.training import recorder

    x, y, test, labels = features(given)
    classes, k = given["classes"], given["neighbours"]
    training = {"epochs": given["epochs"], "batch_size": BATCH}
    rate = RATES[given["kind"]]
    about = {}

    def linear(rate=rate):
        layer = linear.linear_classifier(x, y, classes, learning_rate=rate, **training)
        return np.argmax(linear.predict(layer, test), axis=1)

    def chosen():
        return linear(linear.select_learning_rate(x, y, classes, 0, **training))

    def batches():
        import tensorflow as tf

        features = tf.constant(x)

        @tf.function
        def read(order):
            some = tf.zeros([])
            for step in tf.range(tf.shape(order)[0]):
                some += tf.gather(features, order[step])[0, 0]
            return some

        steps = given["epochs"] * -(-len(x) // BATCH)
        order = np.random.default_rng(0).integers(0, len(x), (steps, BATCH))
        read(tf.constant(order, tf.int32)).numpy()
        return labels

    def knn():
        return np.argmax(knn.knn_votes(x, y, test, classes, k), axis=1)

    def sklearn_linear():
        from sklearn import linear_model

        made = linear_model.LogisticRegression(max_iter=1000).fit(x, y)
        about["iterations"] = int(made.n_iter_[0])
        return made.predict(test)

    def sklearn_knn():
        from sklearn import neighbors, preprocessing

        # Rows of length one: the order of distances is that of cosines.
        unit, unit_test = preprocessing.normalize(x), preprocessing.normalize(test)
        made = neighbors.KNeighborsClassifier(
            k,
            algorithm="brute",
            n_jobs=-1,
            weights=lambda d: np.exp((1 - d * d / 2) / 0.1),
        )
        return made.fit(unit, y).predict(unit_test)

    forms = {
        **{"linear": linear, "chosen": chosen, "batches": batches, "knn": knn},
        **{"sklearn_linear": sklearn_linear, "sklearn_knn": sklearn_knn},
    }

    def work():
        base = dry_run.reset_peak()
        found = forms[given["form"]]()
        top1 = float(np.mean(found == labels))
        return {"top1": top1, "bytes": recorder.peak_memory() - base, **about}

    return work, {}
