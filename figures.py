"""The figures of an evaluation (Matplotlib). Slow imports are in functions."""

import io
import warnings

import numpy as np
from scipy.special import expit

import curves
import metrics


def new_figure(width, height):
    """An empty figure; width and height in inches of 100 pixels."""
    from matplotlib.figure import Figure  # unlike pyplot it needs no display

    return Figure(figsize=(width, height), dpi=100, layout="constrained")


def render(figure):
    """A figure as the bytes of a PNG file."""
    file = io.BytesIO()
    with warnings.catch_warnings():  # a letter that the font lacks becomes a box
        warnings.filterwarnings("ignore", "Glyph")
        figure.savefig(file, format="png")
    return file.getvalue()


def plot_figures(workdir, evaluation):
    """{name: Figure} of all plots for which the evaluation has data."""
    figures = {}
    if len(np.unique(evaluation.pairs.label)) == 2:
        figures["decisions"] = plot_decisions(evaluation)
    figures["training"] = plot_training(workdir)
    return figures | {"pairs": plot_pairs(evaluation)}


def plot_decisions(evaluation):
    """ROC, reliability diagram and histogram of the probabilities."""
    from sklearn.metrics import roc_curve

    logits, _, _, label = evaluation.scores
    weight, probability = evaluation.pairs.weight, expit(logits)
    far, tar, _ = roc_curve(label, logits, sample_weight=weight)
    figure = new_figure(5.7, 5.7)
    figure.get_layout_engine().set(h_pad=0.1)
    roc, reliable, counts = figure.subplot_mosaic("ab;cc").values()
    roc.plot(far, tar, drawstyle="steps-post")
    roc.set(title="ROC", xlabel="false accept rate", ylabel="true accept rate")
    expected, observed, _ = metrics.calibration(probability, label, weight)
    reliable.plot([0, 1], [0, 1], "--", color="grey", linewidth=1)
    reliable.plot(expected, observed, "o-", markersize=4)
    reliable.set(title="reliability", xlabel="probability of same", ylabel="frequency of same")
    for truth, name, color in ((1, "same", "tab:green"), (0, "different", "tab:red")):
        chosen = label == truth
        counts.hist(probability[chosen], 40, range=(0, 1), weights=weight[chosen], alpha=0.6,
                    color=color, label=name)  # fmt: skip
    counts.set(title="answers", xlabel="probability of same", ylabel="share of pairs")
    counts.axvline(evaluation.metrics["threshold"], color="black", linewidth=1, label="threshold")
    counts.margins(y=0.3)  # room for the legend
    counts.legend(loc="upper center", ncols=3, fontsize=8)
    return figure


def plot_training(workdir):
    """Loss and accuracy of training and validation over the steps."""
    figure, names = new_figure(5.7, 5), ("loss", "accuracy")
    tags = [f"{kind}/{name}" for name in names for kind in ("train", "validation")]
    points = dict(zip(tags, curves.read(workdir, *tags), strict=True))  # or none, with a warning
    for axes, name in zip(figure.subplots(2, 1), names, strict=True):
        for tag, style in ((f"train/{name}", "-"), (f"validation/{name}", "o-")):
            axes.plot(*np.reshape(points[tag], (-1, 2)).T, style, label=tag, markersize=4)
        values = [value for tag in tags if name in tag for _, value in points[tag]]
        # A logarithmic axis of less than a decade would have one number.
        is_wide = name == "loss" and max(values, default=0) > 10 * min(values, default=0)
        axes.set(ylabel=name, xlabel="step", yscale="log" if is_wide else "linear")
        axes.legend()
    return figure


def short(name, most):
    """A name as a figure can show it: the middle left out where it is longer than `most`."""
    name = name.encode(errors="backslashreplace").decode()  # a file's name may hold anything
    if len(name) > most:
        name = f"{name[: most // 2]}…{name[most // 2 + 1 - most :]}"
    return name.replace("$", r"\$")  # else Matplotlib reads formulas


def plot_pairs(evaluation, rows=4, columns=6):
    """A grid of pairs: half of them the hardest, then evenly from there to the easiest."""
    pairs, probability = evaluation.pairs, expit(evaluation.scores.logits)
    order = hardest_first(pairs, probability)
    half = rows * columns // 2
    rest = np.linspace(half, len(order) - 1, half).astype(int)
    shown = order if len(order) <= 2 * half else order[np.r_[:half, rest]]
    figure = new_figure(2 * columns, (1.6 if pairs.names is None else 1.85) * rows)
    title = f"The hardest {half} of {len(order):,} unordered pairs, then evenly to the easiest"
    figure.suptitle(title if len(shown) < len(order) else "All unordered pairs, hardest first")
    answers = ("different", "same")
    for place, index in enumerate(shown, start=1):
        axes = figure.add_subplot(rows, columns, place)
        plot_pair(axes, pairs, index)
        truth, said = int(pairs.label[index]), int(evaluation.scores.predicted[index])
        title = f"{answers[truth]}, said {answers[said]}\np(same) = {probability[index]:.3f}"
        axes.set_title(title, fontsize=9, color="black" if truth == said else "crimson")
    return figure


def plot_pair(axes, pairs, index):
    """Plots both images of a pair side by side; below of files the name of the left, the right."""
    image1, image2 = pairs.images[[pairs.first[index], pairs.second[index]]]
    gap = np.full((len(image1), max(1, len(image1) // 16), image1.shape[-1]), 128, np.uint8)
    both = np.concatenate([image1, gap, image2], axis=1).squeeze()
    # Small images keep sharp pixels; large ones are shrunk, and need smoothing.
    smooth = "nearest" if len(image1) <= 64 else "antialiased"
    axes.imshow(both, "gray", vmin=0, vmax=255, interpolation=smooth)
    axes.set_axis_off()
    if pairs.names is not None:
        names = (short(pairs.names[i], 32) for i in (pairs.first[index], pairs.second[index]))
        axes.text(0.5, -0.02, "\n".join(names), fontsize=6, ha="center", va="top",
                  transform=axes.transAxes)  # fmt: skip


def hardest_first(pairs, probability):
    """Indices of pairs, lowest probability of the true label first; one of (a, b) and (b, a)."""
    order = np.argsort(np.where(pairs.label == 1, probability, 1 - probability), kind="stable")
    if not pairs.ordered:
        return order
    _, once = np.unique(metrics.unordered(pairs)[order], return_index=True)
    return order[np.sort(once)]
