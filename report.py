"""What an evaluation writes: a table, metrics.json, figures, report.html, TensorBoard's copies.

Everything goes to workdir/evaluation. The page is one file that asks nothing of the network.
"""

import base64
import contextlib
import html
import importlib.metadata
import io
import itertools
import json
import os
import platform
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
from scipy.special import expit

import data
import metrics
from settings import stop

MOST_KINDS = 12  # classes that are told apart in figures
MOST_POINTS = 2000  # of the embedding map
GREEN_AND_RED = ("tab:green", "tab:red")


def write_report(config, workdir, step, evaluations):
    """Prints the table and writes the files, these for the last of the splits given."""
    try:
        write_files(config, workdir, step, evaluations)
    except OSError as error:
        stop(f"the report cannot be written: {error}; python evaluate.py writes it again")


def write_files(config, workdir, step, evaluations):
    split, evaluation = list(evaluations.items())[-1]
    bounds = {} if evaluation.metrics["exact"] else metrics.intervals(*evaluation.scores)
    table = format_table(step, evaluations, bounds)
    print(table)
    folder = workdir / "evaluation"
    folder.mkdir(exist_ok=True)
    values = evaluation.metrics | {"step": step, "split": split}
    values |= {"intervals": bounds} if bounds else {}
    (folder / "metrics.json").write_text(json.dumps(values, indent=2, allow_nan=False) + "\n")
    pictures = {
        name: render(figure) for name, figure in draw_figures(config, workdir, evaluation).items()
    }
    for name, (png, _) in pictures.items():
        (folder / f"{name}.png").write_bytes(png)
    page = format_page(config, workdir, split, evaluation, table, pictures)
    (folder / "report.html").write_text(page)
    write_embeddings(config, folder, evaluation)
    with open_writer(folder) as write:
        for name, one in evaluations.items():
            write("scalars", step, scalars(name, one))
        write("images", step, {f"{split}/{name}": p[None] for name, (_, p) in pictures.items()})
    print(f"wrote {folder / 'report.html'}, metrics.json and figures beside it")


def scalars(split, evaluation):
    """What TensorBoard shows of an evaluation."""
    numbers = {k: v for k, v in evaluation.metrics.items() if isinstance(v, (int, float))}
    return {
        f"{split}/{k}": v for k, v in numbers.items() if k not in ("pairs", "exact", "threshold")
    }


def which_pairs(evaluation):
    """Whether all pairs were evaluated, in words."""
    if not evaluation.metrics["exact"]:
        return "a sample"
    given = evaluation.pairs.members is None
    return "all that are given" if given else "every ordered pair, by its probability"


def describe(step, split, evaluation):
    """One line for the console."""
    m = evaluation.metrics
    return (
        f"step {step}: {split} loss {m['loss']:.4f}, accuracy {m['accuracy']:.4f}, "
        f"{m['wrong']:,} wrong of {m['pairs']:,} pairs"
    )


def format_table(step, evaluations, bounds):
    """Metrics down, splits across, intervals of the last; then how many pairs and which wrong."""
    lines = [f"{f'step {step}':<16}" + "".join(f"{split:>14}" for split in evaluations)]
    for name in metrics.NAMES:
        values = [one.metrics[name] for one in evaluations.values()]
        texts = ("one class" if value is None else f"{value:.6f}" for value in values)
        interval = "  {:.4f} to {:.4f}".format(*bounds[name]) if name in bounds else ""
        lines.append(f"{name:<16}" + "".join(f"{text:>14}" for text in texts) + interval)
    for split, one in evaluations.items():
        m = one.metrics
        (right0, wrong0), (wrong1, right1) = m["confusion"]
        lines += [
            f"{split}: {m['wrong']:,} wrong of {m['pairs']:,} pairs ({which_pairs(one)})",
            f"  different: {right0:,} right, {wrong0:,} called same; "
            f"same: {right1:,} right, {wrong1:,} called different",
        ]
        if not m["exact"] and not m["wrong"]:
            most = 100 * metrics.most_wrong(m["pairs"])
            lines.append(f"  with 95 % confidence fewer than {most:.2g} % of all pairs are wrong")
    return "\n".join(lines) + ("\nranges are 95 % intervals" if bounds else "")


@contextlib.contextmanager
def open_writer(folder):
    """A context with write(kind, step, values), for TensorBoard, by CLU: kind as "scalars".

    Where it fails, for want of room say, it warns once and writes no more: training goes on.
    Synchronous, so that failures show where they happen.
    """
    writers = []

    def attempt(function, *arguments):
        try:
            return function(*arguments)
        except Exception as error:  # TensorFlow's own kinds
            writers.clear()
            reason = " ".join(str(error).split())[:200]
            print(f"warning: no more curves in {folder}: {reason}", file=sys.stderr)

    def write(kind, step, values):
        for writer in tuple(writers):
            attempt(getattr(writer, f"write_{kind}"), step, values)
            attempt(writer.flush)

    create = partial(import_metric_writers().create_default_writer, asynchronous=False)
    writers += [writer for writer in [attempt(create, folder)] if writer]
    yield write
    for writer in tuple(writers):
        attempt(writer.close)


def import_slow():
    """Imports what takes seconds, for a thread beside what XLA compiles on one core."""
    import matplotlib.figure  # noqa: F401
    import scipy.stats  # noqa: F401
    import sklearn.metrics  # noqa: F401

    import_metric_writers()


def import_metric_writers():
    """Imports CLU's writers: not at the top, because the TensorFlow they load takes seconds."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # without these two
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # TensorFlow fills the screen
    from clu import metric_writers

    return metric_writers


def curve(workdir, *tags):
    """[(step, value)] of each of the run's curves for TensorBoard."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util import tensor_util

    events = EventAccumulator(str(workdir), size_guidance={"tensors": 0})
    events.Reload()
    known = events.Tags()["tensors"]
    found = [events.Tensors(tag) if tag in known else [] for tag in tags]
    return [[(e.step, float(tensor_util.make_ndarray(e.tensor_proto))) for e in f] for f in found]


def write_table(path, rows):
    """Prints rows {column: numbers or text} as a Markdown table and writes it."""
    texts = [{k: v if isinstance(v, str) else spread(v) for k, v in row.items()} for row in rows]
    lines = [list(texts[0]), ["---"] * len(texts[0]), *(list(text.values()) for text in texts)]
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    path.write_text(table)
    print(f"{table}wrote {path}")


def spread(values):
    """Numbers as one text: their mean, and from the lowest to the highest where these differ.

    Where there is none for some it says of how many it is.
    """
    n, values = len(values), [value for value in values if value is not None]
    if not values:
        return ""
    if len(values) < n:
        return f"{spread(values)}, {len(values)} of {n}"
    form = "{:.4f}" if all(0 <= value <= 1 for value in values) else "{:,.0f}"
    mean, low, high = (form.format(f(values)) for f in (np.mean, min, max))
    return mean if low == high else f"{mean} ({low} to {high})"


# --- figures ---


def new_figure(width, height):
    """A figure of so many inches, drawn without a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # not pyplot: no display needed
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def render(figure):
    """The picture of a figure: (PNG bytes, pixels uint8 [height, width, 3])."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue(), np.asarray(figure.canvas.buffer_rgba())[..., :3]


def draw_figures(config, workdir, evaluation):
    """{name: Figure} of all that there is to show of an evaluation."""
    figures = {"pairs": draw_pairs(evaluation), "training": draw_training(workdir)}
    if len(np.unique(evaluation.pairs.label)) == 2:
        figures["decisions"] = draw_decisions(evaluation)
    names = kind_names(config, evaluation.pairs)
    if names is not None and evaluation.features.ndim == 2 and min(evaluation.features.shape) > 1:
        figures["embeddings"] = draw_embeddings(evaluation, names)
    tables = breakdown(evaluation, names)
    if tables:
        figures["breakdown"] = draw_breakdown(tables)
    return figures


def draw_decisions(evaluation):
    """ROC, DET, reliability diagram, and how the probabilities are distributed."""
    from scipy.stats import norm  # not at the top: slow to import
    from sklearn.metrics import roc_curve

    logits, _, _, label = evaluation.scores
    weight, probability = evaluation.pairs.weight, expit(logits)
    far, tar, _ = roc_curve(label, logits, sample_weight=weight)
    figure = new_figure(12, 3.2)
    roc, det, reliable, counts = figure.subplots(1, 4)
    roc.plot(far, tar, drawstyle="steps-post")
    roc.set(title="ROC", xlabel="false accept rate", ylabel="true accept rate")
    shown = (far > 0) & (tar < 1)
    det.plot(norm.ppf(far[shown]), norm.ppf(1 - tar[shown]))
    ticks = [0.001, 0.01, 0.1, 0.5]
    for set_ticks in (det.set_xticks, det.set_yticks):
        set_ticks(norm.ppf(ticks), [f"{tick:g}" for tick in ticks], fontsize=8)
    limits = norm.ppf([0.0005, 0.8])
    det.set(title="DET", xlabel="false accept rate", ylabel="false reject rate")
    det.set(xlim=limits, ylim=limits)
    if not shown.any():
        det.text(0.5, 0.5, "no error at some threshold", ha="center", transform=det.transAxes)
    expected, observed, _ = metrics.calibration(probability, label, weight)
    reliable.plot([0, 1], [0, 1], "--", color="grey", linewidth=1)
    reliable.plot(expected, observed, "o-", markersize=4)
    reliable.set(title="reliability", xlabel="probability of same", ylabel="frequency of same")
    for truth, color in zip((1, 0), GREEN_AND_RED, strict=True):
        chosen = label == truth
        name = "same" if truth else "different"
        counts.hist(probability[chosen], 40, range=(0, 1), weights=weight[chosen], alpha=0.6,
                    color=color, label=name)  # fmt: skip
    counts.set(title="answers", xlabel="probability of same", ylabel="share of pairs")
    counts.legend()
    return figure


def draw_training(workdir):
    """Loss and accuracy over the steps, of training and validation."""
    figure = new_figure(12, 3)
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        tags = [f"{kind}/{name}" for kind in ("train", "validation")]
        for tag, points in zip(tags, curve(workdir, *tags), strict=True):
            axes.plot(*zip(*points, strict=True), "o-" if "val" in tag else "-", label=tag, ms=4)
        axes.set(title=name, xlabel="step", yscale="log" if name == "loss" else "linear")
        axes.legend()
    return figure


def kind_names(config, pairs):
    """The class of each image as a text [n]; None where unknown."""
    if pairs.members is None or config.data.same_as == "picture":
        return None
    return data.class_names(config.data, pairs.members)


def draw_embeddings(evaluation, names):
    """The images' features on their two principal components, a colour for each class."""
    kinds = np.unique(names)[:MOST_KINDS]
    chosen = np.flatnonzero(np.isin(names, kinds))
    chosen = chosen[:: -(-len(chosen) // MOST_POINTS)]
    features = np.float32(evaluation.features[chosen])
    features -= features.mean(axis=0)
    _, spreads, components = np.linalg.svd(features, full_matrices=False)
    share = spreads[:2] ** 2 / max((spreads**2).sum(), 1e-30)
    figure = new_figure(6, 5)
    axes = figure.subplots()
    for kind in kinds:
        points = features[names[chosen] == kind] @ components[:2].T
        axes.scatter(*points.T, s=8, alpha=0.6, label=kind)
    axes.set(title="features of the images", xlabel=f"first component, {100 * share[0]:.0f} %")
    axes.set(ylabel=f"second component, {100 * share[1]:.0f} %")
    axes.legend()
    return figure


def breakdown(evaluation, names):
    """Accuracy by what is in a pair: {title: (names of rows, names of columns, float [r, c])}.

    Of classes, sizes, the distance of the centres and the difference of the angles; a single row
    where it is one number of a pair. What has a single value is left out; nan: no such pair.
    """
    pairs = evaluation.pairs
    right = evaluation.scores.predicted == (pairs.label == 1)
    weight, both, tables = pairs.weight, (pairs.first, pairs.second), {}

    def add(title, places1, places2, rows, columns):
        if len(columns) == 1:
            return
        shape = len(rows), len(columns)
        cells = np.ravel_multi_index((places1, places2), shape)
        sums = [
            np.bincount(cells, w, np.prod(shape)).reshape(shape) for w in (weight, weight * right)
        ]
        if not pairs.ordered and len(rows) > 1:
            sums = [one + one.T for one in sums]
        with np.errstate(invalid="ignore"):
            tables[title] = rows, columns, sums[1] / sums[0]

    def in_bins(values, count):
        edges = np.unique(np.quantile(values, np.linspace(0, 1, count + 1)))
        if len(edges) < 2:
            return np.zeros(len(values), int), [""]
        bins = (np.searchsorted(edges, values, "right") - 1).clip(0, len(edges) - 2)
        return bins, [f"{low:.3g} to {high:.3g}" for low, high in itertools.pairwise(edges)]

    if names is not None and len(np.unique(names)) <= MOST_KINDS:
        kinds, places = np.unique(names, return_inverse=True)
        add("classes", *(places[i] for i in both), list(kinds), list(kinds))
    latents = pairs.latents
    if latents is not None:
        bins, texts = in_bins(latents.size, 5)
        add("sizes, pixels", *(bins[i] for i in both), texts, texts)
        down, along, turn = (
            np.abs(field[pairs.first] - field[pairs.second])
            for field in (latents.row, latents.column, latents.angle)
        )
        for title, values in {
            "distance of the centres, pixels": np.hypot(down, along),
            "difference of the angles, degrees": np.minimum(turn, 360 - turn),
        }.items():
            bins, texts = in_bins(values, 6)
            add(title, np.zeros(len(bins), int), bins, [""], texts)
    return tables


def draw_breakdown(tables):
    """Heat maps of accuracy; the worst cell decides where the colours begin."""
    figure = new_figure(12, 3.6)
    lowest = min(np.nanmin(table) for *_, table in tables.values())
    widths = [max(2, len(columns)) for _, columns, _ in tables.values()]
    grid = figure.subplots(1, len(tables), width_ratios=widths, squeeze=False)[0]
    for axes, (title, (rows, columns, table)) in zip(grid, tables.items(), strict=True):
        axes.imshow(table, "RdYlGn", vmin=min(lowest, 0.99), vmax=1, aspect="auto", alpha=0.6)
        axes.set_title(title, fontsize=10)
        axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right", fontsize=8)
        axes.set_yticks(range(len(rows)), rows, fontsize=8)
        for (i, j), value in np.ndenumerate(table):
            text = "" if np.isnan(value) else f"{100 * value:.1f}"
            axes.text(j, i, text, ha="center", va="center", fontsize=8 if len(rows) < 8 else 6)
    figure.suptitle("accuracy, %")
    return figure


def draw_pairs(evaluation, rows=6, columns=4):
    """A grid of pairs: the first half the most wrong and least certain ones, in this order.

    The second half goes on evenly spaced to the most certain one, so that it shows all there is.
    """
    pairs, probability = evaluation.pairs, expit(evaluation.scores.logits)
    order = hardest_first(pairs, probability)
    half = rows * columns // 2
    rest = np.linspace(half, len(order) - 1, half).astype(int)
    shown = order if len(order) <= 2 * half else order[np.r_[:half, rest]]
    figure = new_figure(2.2 * columns, 1.7 * rows)
    title = f"The hardest {half} of {len(order):,} unordered pairs, then evenly to the easiest"
    figure.suptitle(title if len(shown) < len(order) else "All unordered pairs, hardest first")
    answers = ("different", "same")
    for place, index in enumerate(shown, start=1):
        axes = figure.add_subplot(rows, columns, place)
        image1, image2 = pairs.images[[pairs.first[index], pairs.second[index]]]
        gap = np.full((len(image1), max(1, len(image1) // 16), image1.shape[-1]), 128, np.uint8)
        picture = np.concatenate([image1, gap, image2], axis=1).squeeze()
        axes.imshow(picture, "gray", vmin=0, vmax=255)
        axes.set_axis_off()
        truth, said = int(pairs.label[index]), int(evaluation.scores.predicted[index])
        title = f"{answers[truth]}, said {answers[said]}\np(same) = {probability[index]:.3f}"
        axes.set_title(title, fontsize=11, color="black" if truth == said else "crimson")
    return figure


def hardest_first(pairs, probability):
    """Indices of pairs by the probability given to the truth; (b, a) is left out beside (a, b)."""
    order = np.argsort(np.where(pairs.label == 1, probability, 1 - probability), kind="stable")
    if not pairs.ordered:
        return order
    unordered = np.sort([pairs.first[order], pairs.second[order]], axis=0)
    _, once = np.unique(unordered, axis=1, return_index=True)
    return order[np.sort(once)]


# --- the page ---

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }}
body {{ max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.5rem; }} h2 {{ font-size: 1.1rem; margin-top: 2.5rem; }}
.headline {{ font-size: 2.2rem; font-weight: 600; margin: 0; }}
figure {{ margin: 0; overflow-x: auto; }}
figure img {{ width: 100%; min-width: 36rem; background: white; border-radius: 4px; }}
figure.embeddings img {{ width: auto; max-width: 100%; min-width: 0; }}
pre {{ overflow-x: auto; font-size: 0.85rem; }}
table {{ border-collapse: collapse; }} td, th {{ padding: 0.2rem 0.8rem; text-align: right; }}
@media (prefers-color-scheme: dark) {{
  figure img {{ filter: invert(1) hue-rotate(180deg) brightness(0.9); }}
  figure:is(.pairs, .breakdown) img {{ filter: brightness(0.85); }}
}}
@media print {{ figure img {{ min-width: 0; }} section {{ break-inside: avoid; }} }}
</style>
<h1>{title}</h1>
<p class="headline">{headline}</p>
<p>{summary}</p>
<section><h2>Metrics</h2><pre>{table}</pre></section>
<section><h2>Confusion matrix</h2><table>
<tr><th></th><th>said different</th><th>said same</th></tr>
<tr><th>different</th><td>{c[0][0]:,}</td><td>{c[0][1]:,}</td></tr>
<tr><th>same</th><td>{c[1][0]:,}</td><td>{c[1][1]:,}</td></tr></table></section>
{figures}
<section><h2>Trained with</h2><pre>{versions}</pre></section>
<details><summary>Config</summary><pre>{config}</pre></details>
</html>
"""
CAPTIONS = {
    "decisions": "Decisions at every threshold",
    "breakdown": "Where it is right",
    "embeddings": "Embedding map",
    "pairs": "Pairs, hardest first",
    "training": "Training",
}


def format_page(config, workdir, split, evaluation, table, pictures):
    """report.html as a text; pictures are PNG files inside it."""
    m = evaluation.metrics
    sections = [
        f'<section><h2>{caption}</h2><figure class="{name}"><img alt="{caption}" '
        f'src="data:image/png;base64,{base64.b64encode(pictures[name][0]).decode()}"></figure></section>'
        for name, caption in CAPTIONS.items()
        if name in pictures
    ]
    return PAGE.format(
        title=html.escape(f"{workdir.name}: {split}"),
        headline=f"{100 * m['accuracy']:.2f} % right",
        summary=f"{m['wrong']:,} wrong of {m['pairs']:,} pairs ({which_pairs(evaluation)}).",
        table=html.escape(table),
        c=m["confusion"],
        figures="\n".join(sections),
        config=html.escape(json.dumps(config.to_dict(), indent=2)),
        versions=html.escape("\n".join(f"{k}: {v}" for k, v in last_versions(workdir).items())),
    )


def made_with():
    """Versions and hardware: {name: text}."""
    import jax  # not at the top: NumPy's part needs none

    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    devices = jax.devices()
    git = ("git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty")
    found = subprocess.run(git, capture_output=True, text=True) if shutil.which("git") else None
    return {
        "commit": found.stdout.strip() if found and found.returncode == 0 else "unknown",
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
    }


def read_versions(workdir):
    """{step from which on: versions} of a run."""
    with contextlib.suppress(OSError, ValueError):
        kept = json.loads((workdir / "versions.json").read_text())
        if isinstance(kept, dict) and all(isinstance(one, dict) for one in kept.values()):
            return kept
    return {}


def last_versions(workdir):
    """What a run was trained with at last; what there is now, where that is not known."""
    kept = list(read_versions(workdir).values())
    return kept[-1] if kept else made_with()


def note_versions(workdir, step):
    """Writes what a run is trained with from this step on; warns of what is not as before."""
    kept, now = read_versions(workdir), made_with()
    before = last_versions(workdir)
    changed = [f"{k} was {before[k]}, is {v}" for k, v in now.items() if before.get(k, v) != v]
    if changed:
        text = "; ".join(changed)
        print(f"warning: begun with other versions, the bits may differ: {text}", file=sys.stderr)
    if changed or not kept:
        text = json.dumps(kept | {str(step): now}, indent=2) + "\n"
        (workdir / "versions.json").write_text(text)


def write_embeddings(config, folder, evaluation):
    """The features of some images for TensorBoard's projector, with their classes."""
    names = kind_names(config, evaluation.pairs)
    if names is None or evaluation.features.ndim != 2:
        return
    step = -(-len(names) // MOST_POINTS)
    np.savetxt(folder / "features.tsv", evaluation.features[::step], "%.6g", "\t")
    Path(folder, "classes.tsv").write_text("\n".join(names[::step]) + "\n")
    Path(folder, "projector_config.pbtxt").write_text(
        'embeddings { tensor_name: "features" tensor_path: "features.tsv" '
        'metadata_path: "classes.tsv" }\n'
    )
