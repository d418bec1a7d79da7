"""Looks images up in a gallery: which of its images are most probably the same?

    python evaluate.py --workdir=runs/folder --gallery=db --enroll      # keeps the embeddings
    python evaluate.py --workdir=runs/folder --gallery=db --query=a.png

A gallery is a folder of images, with those below it. The head compares a query with every one: for
100,000 that takes a tenth of a second, so there is no index.
"""

import csv
import hashlib
import io
import os
import sys
import zipfile
from functools import partial
from pathlib import Path

import jax
import numpy as np
from absl import flags
from scipy.special import expit

import figures
import images
from decoding import form_of
from errors import UserError, first_five
from listings import EMBEDDINGS, file_item, find_images
from scoring import IMAGES_AT_ONCE, PAIRS_AT_ONCE, in_blocks
from settings import check_writable, flatten, write_file

# Of EMBEDDINGS in the gallery's folder. step, weights: whose they are; listed: `listing`.
KEYS = ("names", "embeddings", "white", "step", "weights", "listed")
MOST_SHOWN = 12, 8  # queries, and nearest images of each, on the contact sheet


def define_flags():
    """Flags about a search."""
    flags.DEFINE_string("gallery", None, "A folder of images in which --query is looked up.")
    flags.DEFINE_string("query", None, "A file, or a folder: which of --gallery are the same?")
    flags.DEFINE_integer("nearest", 5, "How many images of --gallery to name for each query.", 1)
    flags.DEFINE_bool("enroll", False, "Keep the embeddings of --gallery in its folder.")


def mistakes(options):
    """Yields (whether options of a search are wrong in a way, text that says what is)."""
    asked, name = options.query is not None or options.enroll, options.gallery
    text = "--query, --nearest and --enroll are about a gallery: name --gallery=FOLDER, too"
    yield name is None and (asked or options.nearest != 5), text
    yield name is not None and not asked, f"--gallery={name}: name --query=FILE, or --enroll"
    other = options.images or options.way is not None
    yield name is not None and other, f"--gallery={name}: leave out --images and --way"


def search(config, workdir, step, model, variables, threshold, asked):
    """Answers asked.query by asked.gallery, which asked.enroll keeps; raises UserError.

    threshold: a logit. Prints a table; writes matches.csv and matches.png into the run's folder.
    """
    if jax.process_index():  # of several processes the first one searches
        return
    form, folder, held = form_of(config.data), asked.gallery, jax.device_put(variables)
    made_by = form, model.views, model.of_imagenet, str(model.dtype)
    encode = partial(jax.jit(partial(model.apply, method="encode")), held)
    compare = partial(jax.jit(partial(model.apply, method="compare")), held)
    if not os.path.isdir(folder):
        raise UserError(f"--gallery={folder}: no such folder; wanted is a folder of images")
    if asked.enroll:
        check_writable(Path(folder).absolute(), f"--gallery={folder}")
    path, owner = Path(folder, EMBEDDINGS), {"step": step, "weights": digest(made_by, variables)}
    if asked.query is not None:
        names, pixels, queries, _ = encode_all("query", asked.query, form, encode)
    if path.exists() and not asked.enroll:
        found = open_kept(path, owner)
    else:
        listed = listing(folder)
        paths, _, embeddings, white = encode_all("gallery", folder, form, encode)
        paths = [os.path.relpath(name, folder) for name in paths]
        found = dict(zip(KEYS, (paths, embeddings, white, *owner.values(), listed), strict=True))
    if asked.enroll:
        np.savez(file := io.BytesIO(), **found)
        write_file(path, file.getvalue())
        print(f"wrote {path}: {len(found['names']):,} images")
    if asked.query is None:
        return
    if found["white"] and not form.white:
        form = form._replace(white=int(found["white"]))  # that of the gallery
        names, pixels, queries, _ = encode_all("query", asked.query, form, encode)
    answers = []
    for query in queries:
        chosen, logits = nearest(partial(compare, query[None]), found["embeddings"], asked.nearest)
        paths = [os.path.join(folder, found["names"][i]) for i in chosen]
        answers.append([*zip(paths, logits.tolist(), strict=True)])
    report(workdir / "evaluation", names, pixels, answers, threshold, form)


def nearest(compare, embeddings, k):
    """The k of embeddings [n, size] most probably the same: (indices, logits), highest first.

    compare: embeddings [m, size] -> logits [m]. Of equal logits the first index comes first.
    """
    logits = np.float64(in_blocks(compare, PAIRS_AT_ONCE, embeddings))
    if not np.isfinite(logits).all():
        raise UserError("diverged: answers to the query are not finite")
    chosen = np.argsort(-logits, kind="stable")[:k]
    return chosen, logits[chosen]


def encode_all(option, path, form, encode):
    """The n images of a file or folder that can be read; says which not, raises UserError if none.

    Returns (paths [n], pixels of the first for the sheet, embeddings float32 [n, size], white). All
    are decoded into a temporary file, which is mapped: that bounds the memory.
    """
    paths, skipped = images.list_paths(path)
    shape = (len(paths), form.image_size, form.image_size, form.channels)
    fill = partial(images.decode_set, paths, [file_item(name) for name in paths], form)
    pixels, notes = images.make_unnamed(shape, fill) if paths else (None, None)
    is_read, facts = images.describe(np.array(paths), notes) if paths else (np.zeros(0, bool), [])
    if not is_read.any():
        raise UserError("; ".join([f"--{option}={path}: no images there", *skipped, *facts]))
    for fact in (*skipped, *facts):
        print(f"warning: --{option}: {fact}", file=sys.stderr)
    rows = np.flatnonzero(is_read)
    embeddings = np.float32(in_blocks(encode, IMAGES_AT_ONCE, pixels))[rows]
    return [paths[i] for i in rows], pixels[rows[: MOST_SHOWN[0]]], embeddings, notes["white"]


def digest(made_by, variables):
    """SHA-256 of what embeddings depend on: how they are made, and all variables but the head's."""
    hashed = hashlib.sha256(repr(made_by).encode())
    for name, array in sorted(flatten(variables).items()):
        if name.split(".")[1] != "head":  # as of params.head.threshold
            hashed.update(name.encode() + np.asarray(array).tobytes())
    return hashed.hexdigest()


def listing(folder):
    """A hash of the images below a folder: their names, sizes and times."""
    names, _ = find_images(folder)
    return images.digest(names, [file_item(os.path.join(folder, name)).stamp for name in names])


def open_kept(path, owner):
    """The KEYS of a gallery's file; warns if the folder has changed; raises UserError."""
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {key: file[key] for key in KEYS}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read ({error}): --enroll makes it anew") from None
    if any(found[key] != value for key, value in owner.items()):
        texts = (f"step {x['step']} (weights {str(x['weights'])[:8]})" for x in (found, owner))
        text = "it is of {}, the run's is {}: --enroll makes it anew".format(*texts)
        raise UserError(f"{path}: {text}")
    if found["listed"] != listing(path.parent):
        text = "images were added, removed or changed since then; --enroll makes it anew"
        print(f"warning: {path}: {text}", file=sys.stderr)
    return found


def report(folder, names, pixels, answers, threshold, form):
    """Prints the answers, [(path, logit)] for each query; writes matches.csv and matches.png."""
    table = csv.writer(file := io.StringIO(), lineterminator="\n")
    table.writerow(["query", "rank", "image", "probability", "answer", "threshold"])
    limit = f"{expit(threshold):.6f}"
    for name, found in zip(names, answers, strict=True):
        print(first_five([f"{name}: its nearest, same from {limit} on"]))
        for rank, (path, logit) in enumerate(found, start=1):
            answer = "same" if logit >= threshold else "different"
            table.writerow([name, rank, path, f"{expit(logit):.6f}", answer, limit])
            print(first_five([f"{rank:>4}  {expit(logit):.6f}  {answer:<9}  {path}"]))
    sys.stdout.flush()
    write_file(folder / "matches.csv", file.getvalue().encode(errors="surrogateescape"))
    sheet = draw(names, pixels, answers, threshold, form)
    write_file(folder / "matches.png", figures.render(sheet))
    print(f"wrote {folder / 'matches.csv'}, and matches.png beside it")


def draw(names, pixels, answers, threshold, form):
    """The contact sheet, as the network sees the images: green is same, red is different."""
    count, k = len(pixels), min(len(answers[0]), MOST_SHOWN[1])
    figure = figures.new_figure(1.4 * (k + 1), 1.75 * count + 0.4)
    title = f"{count} of {len(names):,} queries, {k} nearest images; green: same"
    figure.suptitle(f"{title} from {expit(threshold):.4g} on", fontsize=9)
    smooth = "nearest" if pixels.shape[1] <= 64 else "antialiased"
    for i, row in enumerate(figure.subplots(count, k + 1, squeeze=False)):
        paths = [path for path, _ in answers[i][:k]]
        shown = np.zeros((k, *pixels.shape[1:]), np.uint8)  # what is gone since then stays black
        images.decode_set(paths, [file_item(path) for path in paths], form, shown.__setitem__)
        texts = [("query", "black")]
        for _, logit in answers[i][:k]:
            color = "tab:green" if logit >= threshold else "tab:red"
            texts.append((f"{expit(logit):.3f}", color))
        every = zip(row, [pixels[i], *shown], [names[i], *paths], texts, strict=True)
        for axes, image, name, (text, color) in every:
            axes.imshow(image.squeeze(), "gray", vmin=0, vmax=255, interpolation=smooth)
            axes.set(xticks=[], yticks=[])
            axes.set_title(text, fontsize=9, color=color)
            axes.set_xlabel(figures.short("/".join(Path(name).parts[-2:]), 22), fontsize=7)
            axes.spines[:].set(color=color, linewidth=3)
    return figure
