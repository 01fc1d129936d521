"""Evaluation of features: our linear classifier and neighbours, and scikit-learn's."""

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


def measure(options) -> dict:
    if importlib.util.find_spec("sklearn") is None:
        return {"rows": [], "skipped": ["scikit-learn is not installed."]}
    sizes = SIZES[options.size]
    what = f"{sizes['images']:,} features of {sizes['dim']}"
    rows, words = [], []
    for ours, theirs, name, against in (
        (
            "linear",
            "sklearn_linear",
            f"linear, {sizes['epochs']} epochs",
            "LogisticRegression (L-BFGS to convergence)",
        ),
        (
            "knn",
            "sklearn_knn",
            f"kNN, k = {sizes['neighbours']}",
            "KNeighborsClassifier (brute force, all cores)",
        ),
    ):
        with (
            bench_tools.tensorflow_child("probe", form=ours, **sizes) as mine,
            bench_tools.tensorflow_child("probe", form=theirs, **sizes) as other,
        ):
            works = {"ours": mine, "theirs": other}
            for work in works.values():
                work.ready()
            taken = bench_tools.rounds(works, options.pairs, warm=0)
        values = bench_tools.ratios(taken["theirs"], taken["ours"])
        rows.append(
            bench_tools.row(f"{what}: {name}, speed", against, values, least=1.0)
        )
        top1 = [taken[who][0]["top1"] for who in works]
        words.append(f"{name}: top-1 {top1[0]:.2%}, scikit-learn {top1[1]:.2%}")
    test = sizes["images"] // TEST
    whole = 4 * test * (sizes["images"] - test)
    rows.append(
        bench_tools.row(
            "the same kNN: peak memory above the features'",
            f"the matrix of all similarities, {whole / 1e6:.0f} MB",
            [took["bytes"] / whole for took in taken["ours"]],
            most=1.0,
        )
    )
    paragraph = (
        f"Made features of {sizes['classes']} overlapping classes, float32; one of "
        f"{TEST} is for the test. {'; '.join(words)}. One fit of our classifier at one "
        "learning rate; `evaluate` makes five, to choose the rate."
    )
    return {"rows": rows, "paragraphs": [paragraph], "clock": "wall"}


def features(given):
    """Features of overlapping classes: `(train, labels, test, labels)`, float32."""
    import numpy as np

    draw = np.random.default_rng(0)
    count, width, classes = given["images"], given["dim"], given["classes"]
    centres = draw.normal(size=(classes, width)).astype("float32")
    labels = draw.integers(0, classes, count)
    x = draw.normal(size=(count, width)).astype("float32")
    x += given["distance"] * centres[labels]
    test = count // TEST
    return x[test:], labels[test:], x[:test], labels[:test]


def probe(given):
    """A linear classifier or neighbours, ours or scikit-learn's; says its top-1."""
    import numpy as np

    x, y, test, labels = features(given)
    classes, k = given["classes"], given["neighbours"]

    def linear():
        from tfsimclr import probes

        layer = probes.linear_classifier(
            x, y, classes, epochs=given["epochs"], learning_rate=3e-4
        )
        return np.argmax(probes.predict(layer, test), axis=1)

    def knn():
        from tfsimclr import probes

        return np.argmax(probes.knn(x, y, test, classes, k), axis=1)

    def sklearn_linear():
        from sklearn import linear_model

        made = linear_model.LogisticRegression(max_iter=1000)
        return made.fit(x, y).predict(test)

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
        **{"linear": linear, "knn": knn},
        **{"sklearn_linear": sklearn_linear, "sklearn_knn": sklearn_knn},
    }
    from tfsimclr import callbacks, trial

    def work():
        base = trial.reset_peak()
        found = forms[given["form"]]()
        top1 = float(np.mean(found == labels))
        return {"top1": top1, "bytes": callbacks.peak_memory() - base}

    return work, {}
