"""Slow NumPy float64 twins of the formulas, written as loops from the papers."""

import math

import numpy as np


def unit_rows(z) -> np.ndarray:
    """Returns the rows of `[n, d]` divided by their norms; a zero row stays zero."""
    z = np.array(z, dtype=np.float64)
    for row in z:
        norm = math.sqrt(sum(value * value for value in row))
        if norm > 0:
            row /= norm
    return z


def _log_sum_exp(values) -> float:
    largest = max(values)
    return largest + math.log(sum(math.exp(value - largest) for value in values))


def nt_xent(z_a, z_b, temperature: float, keys=None) -> float:
    """Returns the mean NT-Xent loss over the 2n anchors.

    Source: Chen et al. 2020 (arXiv:2002.05709), equation 1 and algorithm 1.
    """
    n = len(z_a)
    z = np.concatenate([unit_rows(z_a), unit_rows(z_b)])  # [2n, d]
    w = z if keys is None else np.concatenate([unit_rows(k) for k in keys])
    total = 0.0
    for i in range(2 * n):
        positive = i + n if i < n else i - n
        others = [z[i] @ w[k] / temperature for k in range(2 * n) if k != i]
        total += _log_sum_exp(others) - z[i] @ w[positive] / temperature
    return total / (2 * n)


def dcl(z_a, z_b, temperature: float, keys=None, weighted: bool = False) -> float:
    """Returns the mean of both one-way decoupled losses.

    Source: Yeh et al. 2022 (arXiv:2110.06848), equations 6 and 7.
    """
    views = [unit_rows(z_a), unit_rows(z_b)]
    others = views if keys is None else [unit_rows(k) for k in keys]
    n = len(z_a)
    total = 0.0
    for one in (0, 1):
        anchor, target = views[one], others[1 - one]
        agreement = [anchor[i] @ target[i] for i in range(n)]
        mean = sum(math.exp(s / 0.5) for s in agreement) / n
        for i in range(n):
            negatives = [
                anchor[i] @ other[k] / temperature
                for other in others
                for k in range(n)
                if k != i
            ]
            weight = 2 - math.exp(agreement[i] / 0.5) / mean if weighted else 1.0
            total += _log_sum_exp(negatives) - weight * agreement[i] / temperature
    return total / (2 * n)


def dclw(z_a, z_b, temperature: float, keys=None) -> float:
    return dcl(z_a, z_b, temperature, keys, weighted=True)


def info_nce_of_queue(query, key, queue, temperature: float) -> float:
    """Returns MoCo's loss, He et al. 2020 (arXiv:1911.05722), algorithm 1."""
    query, key = unit_rows(query), unit_rows(key)
    total = 0.0
    for i in range(len(query)):
        logits = [query[i] @ key[i] / temperature]
        logits += [query[i] @ row / temperature for row in queue]
        total += _log_sum_exp(logits) - logits[0]
    return total / len(query)


def info_nce(query, key, temperature: float) -> float:
    """Returns the mean of -log softmax(query key^T / temperature) on the diagonal.

    Source: van den Oord et al. 2018 (arXiv:1807.03748), equation 4.
    """
    query, key = unit_rows(query), unit_rows(key)
    total = 0.0
    for i in range(len(query)):
        logits = [query[i] @ row / temperature for row in key]
        total += _log_sum_exp(logits) - logits[i]
    return total / len(query)


def gradients(function, *arrays, step: float = 1e-5) -> list[np.ndarray]:
    """Returns the central differences of a scalar function in every array."""
    arrays = [np.array(array, dtype=np.float64) for array in arrays]
    results = []
    for array in arrays:
        result = np.zeros_like(array)
        for index in np.ndindex(array.shape):
            kept = array[index]
            array[index] = kept + step
            above = function(*arrays)
            array[index] = kept - step
            below = function(*arrays)
            array[index] = kept
            result[index] = (above - below) / (2 * step)
        results.append(result)
    return results


def contrastive_top1(z_a, z_b) -> float:
    """Returns the share of anchors whose nearest other row is their other view."""
    n = len(z_a)
    z = np.concatenate([unit_rows(z_a), unit_rows(z_b)])
    hits = 0
    for i in range(2 * n):
        others = [k for k in range(2 * n) if k != i]
        nearest = max(others, key=lambda k, i=i: z[i] @ z[k])
        hits += nearest == (i + n) % (2 * n)
    return hits / (2 * n)


def alignment(z_a, z_b) -> float:
    """Returns the mean squared distance of the two views.

    Source: Wang and Isola 2020 (arXiv:2005.10242), equation 4 with alpha 2.
    """
    total = 0.0
    for a, b in zip(unit_rows(z_a), unit_rows(z_b), strict=True):
        total += sum((x - y) ** 2 for x, y in zip(a, b, strict=True))
    return total / len(z_a)


def uniformity(z) -> float:
    """Returns the log of the mean Gaussian potential of the pairs i != j.

    Source: Wang and Isola 2020 (arXiv:2005.10242), equation 5 with t 2.
    """
    z = unit_rows(z)
    potentials = []
    for i in range(len(z)):
        for j in range(len(z)):
            if i != j:
                potentials.append(math.exp(-2 * ((z[i] - z[j]) ** 2).sum()))
    return math.log(sum(potentials) / len(potentials))


def feature_std(h) -> float:
    """Returns sqrt(d) times the mean standard deviation of the unit rows' dimensions.

    Source: Chen and He 2021 (arXiv:2011.10566), section 4.1.
    """
    h = unit_rows(h)
    n, d = h.shape
    deviations = []
    for j in range(d):
        mean = sum(h[:, j]) / n
        deviations.append(math.sqrt(sum((value - mean) ** 2 for value in h[:, j]) / n))
    return math.sqrt(d) * sum(deviations) / d


def effective_rank(h) -> float:
    """Returns exp of the entropy of the centred features' singular values.

    Source: Roy and Vetterli 2007, definition 2.1.
    """
    h = np.array(h, dtype=np.float64)
    singular = np.linalg.svd(h - h.mean(axis=0), compute_uv=False)
    if singular.sum() <= 1e-12:
        return 1.0
    entropy = 0.0
    for value in singular:
        p = value / singular.sum()
        if p > 0:
            entropy -= p * math.log(p)
    return math.exp(entropy)


def retrieval_ranks(queries, candidates) -> list[int]:
    """Returns the rank of each query's own row by cosine; equal ones rank lowest."""
    queries, candidates = unit_rows(queries), unit_rows(candidates)
    ranks = []
    for i in range(len(queries)):
        own = queries[i] @ candidates[i]
        closer = [k for k in range(len(candidates)) if queries[i] @ candidates[k] > own]
        equal = [
            k
            for k in range(len(candidates))
            if abs(queries[i] @ candidates[k] - own) < 1e-7 and k not in closer
        ]
        ranks.append(len(closer) + len(equal))
    return ranks


def rankme(features) -> float:
    """Returns exp of the entropy of the singular values, not centred.

    Source: Garrido et al. 2023 (arXiv:2210.02885), equations 1 and 2.
    """
    singular = np.linalg.svd(np.array(features, dtype=np.float64), compute_uv=False)
    entropy = 0.0
    for value in singular:
        p = value / sum(singular) + 1e-7
        entropy -= p * math.log(p)
    return math.exp(entropy)


def trust_ratio(weight, update, trust: float) -> float:
    """Returns trust * |weight| / |update|, 1 where either norm is zero."""
    weight_norm = math.sqrt(sum(float(x) ** 2 for x in np.ravel(weight)))
    update_norm = math.sqrt(sum(float(x) ** 2 for x in np.ravel(update)))
    if weight_norm == 0 or update_norm == 0:
        return 1.0
    return trust * weight_norm / update_norm


def lars_trajectory(
    weight, gradients, learning_rates, *, momentum: float, l2: float, trust: float
) -> list[np.ndarray]:
    """Returns the weight after every step of LARS.

    Source: You et al. 2017 (arXiv:1708.03888), algorithm 1, with variables of rank 1
    and below neither decayed nor adapted as in SimCLR.
    """
    weight = np.array(weight, dtype=np.float64)
    velocity = np.zeros_like(weight)
    path = []
    for gradient, learning_rate in zip(gradients, learning_rates, strict=True):
        update = np.array(gradient, dtype=np.float64)
        ratio = 1.0
        if weight.ndim > 1:
            update = update + l2 * weight
            ratio = trust_ratio(weight, update, trust)
        velocity = momentum * velocity + learning_rate * ratio * update
        weight = weight - velocity
        path.append(weight)
    return path


def learning_rate(
    step: int, peak: float, total_steps: int, warmup_steps: int, decay: str
) -> float:
    """Returns the learning rate of a step: linear warm-up, then constant or cosine."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if decay == "constant":
        return peak
    if step >= total_steps:
        return 0.0
    share = (step - warmup_steps) / (total_steps - warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * share))


def cosine_similarities(a, b) -> np.ndarray:
    """Returns the cosine similarities `[m, n]` of two sets of rows."""
    return unit_rows(a) @ unit_rows(b).T


def multi_view(z, temperature: float, loss="nt_xent", keys=None, **options) -> float:
    """Returns a contrastive loss over the ordered pairs of views of every image.

    Sources: Caron et al. 2020 (arXiv:2006.09882), appendix A.8; for hcl Robinson et al.
    2021 (arXiv:2010.04592), algorithm 1.

    Args:
        z: Projections of V views, `[n, d]` each.
        temperature: Positive.
        loss: `nt_xent`, `dcl`, `dclw` or `hcl`.
        keys: None, or candidates like `z`.
        **options: `beta` and `tau_plus` of hcl.
    """
    z = [unit_rows(view) for view in z]
    w = z if keys is None else [unit_rows(view) for view in keys]
    views, n = len(z), len(z[0])
    losses = []
    for v in range(views):
        for u in range(views):
            if u == v:
                continue
            agreement = [z[v][i] @ w[u][i] for i in range(n)]
            mean = sum(math.exp(s / 0.5) for s in agreement) / n
            for i in range(n):
                negatives = [
                    math.exp(z[v][i] @ w[other][k] / temperature)
                    for other in range(views)
                    for k in range(n)
                    if k != i
                ]
                positive = math.exp(agreement[i] / temperature)
                if loss == "nt_xent":
                    losses.append(-math.log(positive / (positive + sum(negatives))))
                elif loss == "hcl":
                    total = _hcl_negatives(positive, negatives, temperature, **options)
                    losses.append(-math.log(positive / (positive + total)))
                else:
                    weight = 2 - math.exp(agreement[i] / 0.5) / mean
                    weight = weight if loss == "dclw" else 1.0
                    losses.append(math.log(sum(negatives)))
                    losses[-1] -= weight * agreement[i] / temperature
    return sum(losses) / len(losses)


def _hcl_negatives(positive, negatives, temperature, beta, tau_plus) -> float:
    """Returns Ng of HCL's algorithm 1."""
    count = len(negatives)
    weights = [value**beta for value in negatives]
    mean_weight = sum(weights) / count
    reweighted = sum(w * x for w, x in zip(weights, negatives, strict=True))
    total = reweighted / mean_weight - tau_plus * count * positive
    return max(total / (1 - tau_plus), count * math.exp(-1 / temperature))


def multi_view_top1(z, keys=None) -> float:
    """Returns the share of ordered pairs nearer than all views of other images."""
    z = [unit_rows(view) for view in z]
    w = z if keys is None else [unit_rows(view) for view in keys]
    views, n = len(z), len(z[0])
    hits = []
    for v in range(views):
        for i in range(n):
            hardest = max(
                z[v][i] @ w[u][k] for u in range(views) for k in range(n) if k != i
            )
            hits += [z[v][i] @ w[u][i] > hardest for u in range(views) if u != v]
    return sum(hits) / len(hits)


def sogclr(batches, temperature: float, gamma: float, num_images: int):
    """Returns the gradients of SogCLR's loss at every step, and the last means.

    Central differences of the batch means of every anchor, divided by the running mean,
    in place of the automatic gradient.

    Source: Yuan et al. 2022 (arXiv:2202.12387), algorithm 1, and the authors' code.

    Args:
        batches: Pairs (image indices `[n]`, projections of V views, `[n, d]` each).
        temperature: Positive.
        gamma: Weight of the newest batch.
        num_images: Number of images.
    """
    means = [None] * num_images
    gradients_of_steps = []
    for index, z in batches:
        running: dict = {}

        def batch_mean(z, v, i):
            z = [unit_rows(view) for view in z]
            values = [
                math.exp(z[v][i] @ other[k] / temperature)
                for other in z
                for k in range(len(other))
                if k != i
            ]
            return sum(values) / len(values)

        for v in range(len(z)):
            for i, image in enumerate(index):
                newest = batch_mean(z, v, i)
                before = means[image]
                running[v, i] = (
                    newest if before is None else (1 - gamma) * before + gamma * newest
                )

        def surrogate(*z, running=running):
            """A function with the gradient of the step."""
            rows = [unit_rows(view) for view in z]
            views, n = len(rows), len(rows[0])
            total = 0.0
            for v in range(views):
                for i in range(n):
                    others = [u for u in range(views) if u != v]
                    pull = sum(rows[v][i] @ rows[u][i] for u in others) / len(others)
                    total += batch_mean(z, v, i) / running[v, i] - pull / temperature
            return total / (views * n)

        gradients_of_steps.append(gradients(surrogate, *z))
        for i, image in enumerate(index):
            means[image] = sum(running[v, i] for v in range(len(z))) / len(z)
    return gradients_of_steps, means
