import importlib
import io
import shutil
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import run, run_fork
from PIL import Image

import audit
import data
import duplicates
import shortcuts
from configs import default
from spaces import Pairs


def small(**changes):
    """A space of 24 images, so that pairs can be counted by hand."""
    config = default.get_config()
    config.data.update({"image_size": 14, "max_size": 6} | changes)
    return config


def pairs_of(shown, first, second, label, **fields):
    """Pairs of the same weight."""
    weight = np.full(len(label), 1 / len(label))
    known = {"class_ids": None, "names": None} | fields
    return Pairs(shown, first, second, label, weight, True, False, **known)


def picture(random, size=96):
    """Something like a photograph: soft spots of any colour."""
    spots = random.integers(0, 256, (6, 6, 3)).astype(np.uint8)
    return Image.fromarray(spots).resize((size, size), Image.Resampling.BICUBIC)


def config_of(source, path, **changes):
    config = default.get_config()
    known = {"source": source, "path": str(path), "channels": 3, "split": "disjoint"}
    config.data.update(known | changes)
    return config


def test_the_default_shows_its_flaw(tmp_path):
    finished = run("audit.py", cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    lines = dict(
        line.strip().split("  ", 1) for line in finished.stdout.splitlines() if "  " in line
    )
    lines = {name: text.strip() for name, text in lines.items()}
    assert lines["test"] == "96 images of 2 classes, 9,216 ordered pairs"
    assert lines["lit area of both"] == lines["parity of the area"] == "100.0 %"
    assert lines["test images seen"] == "100.00 % after 6,400 training pairs"
    assert lines["always the same answer"].startswith("50.")
    assert "\nadvice: the rule 'lit area of both' is right on 100.0 % of test" in finished.stdout
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["default.png"]
    assert np.asarray(Image.open(tmp_path / "runs" / "default.png")).std() > 20


def test_tiles_are_in_rows_and_a_short_row_ends_white():
    rows = [np.arange(12, dtype=np.uint8).reshape(3, 2, 2, 1), np.zeros((1, 2, 2, 1), np.uint8)]
    sheet = audit.tile(rows)
    assert sheet.shape == (4, 6, 1)
    np.testing.assert_array_equal(sheet[:2, 2:4], rows[0][1])
    assert (sheet[2:, :2] == 0).all() and (sheet[2:, 2:] == 255).all()


def test_no_rule_blind_to_shape_answers_heldout(monkeypatch):
    monkeypatch.setattr(shortcuts, "TRAIN_PAIRS", 3000)
    monkeypatch.setattr(shortcuts, "TEST_PAIRS", 2000)
    config = importlib.import_module("configs.heldout").get_config()
    train, test = (shortcuts.take_pairs(config, split) for split in ("train", "test"))
    rules = shortcuts.blind_rules(config, train, test)
    nearest = rules.pop("nearest training image")
    assert len(rules) == 6 and max(rules.values()) < 0.6 < nearest


def test_what_training_draws_is_counted_among_the_test():
    config = small()
    config.batch_size, config.num_steps = 8, 3
    test, drawn = shortcuts.take_pairs(config, "test"), set()
    for step in range(3):
        batch = data.make_batch(config, "train", step)
        drawn |= {frozenset((a.tobytes(), b.tobytes())) for a, b in zip(*batch[:2], strict=True)}
    names = [image.tobytes() for image in test.images]
    pairs = [(names[i], names[j]) for i, j in zip(test.first, test.second, strict=True)]
    images = np.array([np.mean([x in set().union(*drawn) for x in pair]) for pair in pairs])
    both = np.array([frozenset(pair) in drawn for pair in pairs])
    images, both = images @ test.weight, both @ test.weight
    assert dict(audit.seen(config, test)) == {
        "test images seen": f"{100 * images:.2f} % after 24 training pairs",
        "test pairs seen": f"{100 * both:.2f} % after 24 training pairs",
    }
    assert 0 < both < images < 1


def test_disjoint_splits_have_seen_nothing_and_shared_ones_have(monkeypatch):
    monkeypatch.setattr(audit, "SEEN_PAIRS", 10_000)
    everywhere = importlib.import_module("configs.everywhere").get_config()
    for split in ("disjoint", "shared"):
        everywhere.data.split = split
        (_, text), _ = audit.seen(everywhere, shortcuts.take_pairs(everywhere, "test"))
        share = text.split(" % after the first ")[0]
        assert float(share) == 0 if split == "disjoint" else float(share) > 80


def test_near_duplicates_are_found_and_look_alikes_are_not():
    random = np.random.default_rng(0)
    shown = [picture(random) for _ in range(8)]
    file = io.BytesIO()
    shown[3].save(file, "JPEG", quality=50)
    copies = [shown[1].resize((48, 48)), Image.open(file), shown[6].resize((200, 150))]
    swapped = Image.fromarray(np.asarray(shown[2])[..., ::-1])  # the same shapes in other colours
    flat = Image.new("RGB", (96, 96), "white")  # but for a spot that nobody sees
    flat.paste((253, 253, 253), (0, 0, 12, 12))
    asked, known = [swapped, flat, *copies, picture(random)], [*shown, flat]

    def decoded(pictures):
        return np.stack([np.asarray(x.resize((32, 40))) for x in pictures])

    one, other = (duplicates.thumbnails(decoded(some)) for some in (asked, known))
    assert np.argwhere(one @ other.T >= duplicates.ALIKE).tolist() == [[2, 1], [3, 3], [4, 6]]


def test_the_product_of_thumbnails_is_the_correlation_of_their_means():
    shown = np.random.default_rng(0).integers(0, 256, (2, 32, 48, 3)).astype(np.uint8)
    one, other = duplicates.thumbnails(shown)
    means = shown.reshape(2, 16, 2, 16, 3, 3).mean(axis=(2, 4)).reshape(2, -1)
    assert one @ other == pytest.approx(np.corrcoef(means)[0, 1], abs=1e-3)


def test_images_in_two_classes_are_counted_and_named(tmp_path):
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(40):
            picture(random, 16).save(tmp_path / name / f"{i:02}.png")
        (tmp_path / name / "damaged.png").write_text("no picture")
    Image.new("RGB", (9, 9)).save(tmp_path / "a" / "black.png")  # as what cannot be read is kept
    spoilt = shutil.copytree(tmp_path, tmp_path.parent / f"{tmp_path.name}_spoilt")
    (line,) = duplicates.find_all(config_of("folder", tmp_path).data)
    assert line == "no contradictions, and no near-duplicates in two splits"
    for i in range(6):
        shutil.copy(spoilt / "a" / f"0{i}.png", spoilt / "b" / f"x{i}.png")
    shutil.copy(spoilt / "b" / "00.png", spoilt / "b" / "x6.png")
    (line,) = duplicates.find_all(config_of("folder", spoilt).data)
    first, _, rest = line.partition(": ")
    assert first == "6 images are in two classes" and rest.endswith(", and 1 more")
    assert {*rest.removesuffix(", and 1 more").split(", ")} < {
        f"a/0{i}.png with b/x{i}.png" for i in range(6)
    }


def test_what_a_list_of_pairs_contradicts_is_named(tmp_path):
    random, lines = np.random.default_rng(0), ["image1,image2,label,split"]
    for split in ("train", "validation", "test"):
        for i in range(4):
            picture(random).save(tmp_path / f"{split}{i}.png")
        lines += [
            f"{split}{i}.png,{split}{j}.png,{int(j == 1)},{split}" for i, j in ((0, 1), (2, 3))
        ]
    (tmp_path / "copy.png").write_bytes((tmp_path / "train0.png").read_bytes())
    Image.open(tmp_path / "train3.png").resize((60, 60)).save(tmp_path / "test2.png")
    Image.open(tmp_path / "validation0.png").save(tmp_path / "test3.jpg", quality=50)
    lines += ["train0.png,copy.png,0,train", "train1.png,train1.png,0,train"]
    lines += ["train1.png,train0.png,0,train", "test0.png,test3.jpg,0,test"]
    for name in ("damaged.png", "broken.png"):
        (tmp_path / name).write_text("no picture")
    lines += ["damaged.png,broken.png,0,train"]
    lines += ["test0.png,train2.png,0,test"]  # in two splits, and no near-duplicate of itself
    (tmp_path / "list.csv").write_text("\n".join(lines))
    config = config_of("pairs", tmp_path / "list.csv")
    equal, contradiction, of_train, of_validation = duplicates.find_all(config.data)
    assert equal == (
        "2 pairs of equal pixels are labelled different: "
        "copy.png with train0.png, train1.png with train1.png"
    )
    text = "1 pairs of images are labelled both same and different: "
    assert contradiction == f"{text}train0.png with train1.png"
    text = "1 of 6 images of test are near-duplicates of"
    assert of_train == f"{text} train images: test2.png with train3.png"
    assert of_validation == f"{text} validation images: test3.jpg with validation0.png"


@pytest.mark.parametrize("case", range(5))
def test_contradictions_are_those_of_a_plain_count(case):
    random = np.random.default_rng(case)
    pairs = random.integers(0, (9, 9, 2), (60, 3))
    files = SimpleNamespace(pairs=pairs, split_hash=np.arange(9) // 2, classes=np.arange(9))
    times = Counter((min(a, b), max(a, b), label) for a, b, label in pairs.tolist())
    equal = sum(a // 2 == b // 2 and not label for a, b, label in times)
    both = sum((a, b, 0) in times and (a, b, 1) in times for a in range(9) for b in range(9))
    again = sum(n > 1 for n in times.values())
    found = duplicates.contradictions(files).values()
    assert [len(pairs) for pairs in found] == [equal, both, again]


def test_raw_pixels_are_compared_as_defined():
    random = np.random.default_rng(0)
    base = random.integers(0, 60, (40, 8, 6, 3))
    noise = random.integers(0, 195, (2, 40, 8, 6, 3))
    shown = np.concatenate([base + noise[0], base + noise[1]]).astype(np.uint8)
    first, second = random.integers(0, 80, (2, 300))
    second[:150] = (first[:150] + 40) % 80
    label = (first % 40 == second % 40).astype(float)
    train, test = (pairs_of(shown, first[i::2], second[i::2], label[i::2]) for i in (0, 1))
    scores = shortcuts.pixel_scores(test)
    pixels = shown.reshape(80, -1).astype(float)
    both = [(pixels[i], pixels[j]) for i, j in zip(test.first, test.second, strict=True)]
    distance, correlation = scores["L2 distance of pixels"], scores["correlation of pixels"]
    np.testing.assert_allclose(
        distance, [-np.sqrt(((a - b) ** 2).sum()) for a, b in both], rtol=1e-5
    )
    np.testing.assert_allclose(correlation, [np.corrcoef(a, b)[0, 1] for a, b in both], atol=1e-5)
    rules = shortcuts.blind_rules(config_of("pairs", "none.csv"), train, test)
    assert "nearest training image" not in rules and "mean colour of both" in rules
    for name, known in shortcuts.pixel_scores(train).items():
        edges = np.sort(known)[::-1]
        best = np.argmax([((known >= edge) == train.label).mean() for edge in edges])
        right = (scores[name] >= edges[best : best + 2].mean()) == test.label
        assert rules[name] == pytest.approx(right.mean()) and 0.55 < rules[name] < 0.9


def test_pairs_are_taken_once_or_drawn():
    config = small(image_size=16, max_size=7, p_same=0.3)  # 50 images
    pairs = shortcuts.take_pairs(config, "train")
    assert pairs.exact and (pairs.first <= pairs.second).all()
    assert len({*zip(pairs.first, pairs.second, strict=True)}) == len(pairs.label)
    config.data.update({"image_size": 32, "max_size": 15, "placement": "inside"})
    pairs = shortcuts.take_pairs(config, "test")
    assert not pairs.exact and len(pairs.label) == shortcuts.TEST_PAIRS


def test_no_picture_is_shown_twice():
    shown = np.arange(10, 100, 10, dtype=np.uint8)[:, None, None, None] * np.ones(
        (4, 4, 1), np.uint8
    )
    pairs = pairs_of(shown, np.array([0, 2, 4]), np.array([1, 3, 5]), np.array([1.0, 0, 0]))
    classes = pairs._replace(class_ids=np.array([0, 1, 0, 0, 0, 1, 1, 0, 0]))
    names, samples = audit.tile_samples(default.get_config(), classes)
    assert names == ["circle", "square"] and samples.shape == (2 * 6, 6 * 6, 1)
    for sheet, count in ((samples, 9), (audit.tile_pairs(pairs)[1], 6)):
        values = sheet[sheet < 100]
        assert (np.unique(values, return_counts=True)[1] == 16).all() and values.size == count * 16


def test_a_shortcut_in_files_is_found(photos, tmp_path):
    config = config_of("folder", photos, image_size=16)
    train, test = (shortcuts.take_pairs(config, split) for split in ("validation", "test"))
    rules = shortcuts.blind_rules(config, train, test)
    assert rules["mean colour of both"] > 0.95
    audit.plot_audit(config, ["a fact"], train, test, rules).savefig(tmp_path / "x.png")
    assert np.asarray(Image.open(tmp_path / "x.png")).std() > 20


@pytest.mark.parametrize(
    "option",
    [
        "--output=image.txt",
        "--output=",
        "--output=/dev/null/x.png",
        "--config.data.split=some",
        "--config.data.image_size=100000",
    ],
)
def test_a_mistake_is_one_line(option, tmp_path):
    finished = run_fork("audit.py", option, cwd=tmp_path)
    assert finished.returncode == 1 and finished.stderr.count("\n") == 1
    assert option.split("=")[0] in finished.stderr and not list(tmp_path.iterdir())
