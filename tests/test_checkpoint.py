import shutil
from collections import Counter

import jax
import numpy as np
import pytest
from conftest import tiny_config

import checkpoint
import train_step
from errors import UserError
from model import create_model

# Orbax leaves tasks behind when it fails to read.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(workdir with two checkpoints, {step: state}, the state to restore into)."""
    config = tiny_config()
    model = create_model(config)
    fresh = train_step.create_state(config, model, train_step.make_optimizer(config)[0])
    workdir, states = tmp_path_factory.mktemp("saved"), {}
    with checkpoint.Saver(workdir, keep_latest=2, keep_best=5) as saver:
        for step in (4, 8):
            rng = np.random.default_rng(step)
            state = jax.tree.map(lambda x, rng=rng: rng.normal(size=x.shape).astype(x.dtype), fresh)
            states[step] = state.replace(step=np.int32(step))
            saver.save(states[step], {"loss": 1 / step})
    return workdir, states, fresh


def damage(path, kind):
    """Spoils a file; whether there was anything to spoil."""
    content = bytearray(path.read_bytes())
    if kind == "deleted":
        path.unlink()
    elif not content:
        return False
    elif kind == "flipped":
        content[len(content) // 2] ^= 4
        path.write_bytes(content)
    else:
        path.write_bytes(content[: len(content) // 2 if kind == "truncated" else 0])
    return True


@pytest.mark.parametrize("kind", ["truncated", "emptied", "deleted", "flipped"])
def test_whatever_happens_to_a_file_the_bits_are_right_or_it_is_noticed(
    kind, saved, tmp_path, capfd
):
    """A damaged newest checkpoint is named, kept under another name, and the one before is used."""
    whole, states, fresh = saved
    expected = {step: checkpoint.digest(state) for step, state in states.items()}
    files = [path.relative_to(whole) for path in (whole / "checkpoints" / "8").rglob("*")]
    outcomes = Counter()
    for i, name in enumerate(name for name in files if (whole / name).is_file()):
        workdir = tmp_path / str(i)
        shutil.copytree(whole, workdir)
        if not damage(workdir / name, kind):
            continue
        found = checkpoint.restore(workdir, fresh)
        step = int(found.step)
        assert checkpoint.digest(found) == expected[step], name
        aside = (workdir / "checkpoints" / "8.damaged").exists()
        assert aside == (step == 4)
        assert ("set aside as 8.damaged" in capfd.readouterr().err) == aside
        outcomes["set aside" if aside else "the same bits"] += 1
    assert outcomes["set aside"] >= 5, outcomes


def test_with_nothing_whole_left_training_does_not_start_again_unasked(saved, tmp_path):
    whole, _, fresh = saved
    shutil.copytree(whole, tmp_path / "run")
    for step in (4, 8):
        for path in (tmp_path / "run" / "checkpoints" / str(step) / "training" / "d").iterdir():
            damage(path, "flipped")
    for _ in range(2):  # the second start finds nothing but what was set aside
        with pytest.raises(UserError, match=r"4.damaged, 8.damaged"):
            checkpoint.restore(tmp_path / "run", fresh)


def test_an_evaluation_names_the_damage_and_changes_nothing(saved, tmp_path):
    whole, states, fresh = saved
    shutil.copytree(whole, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    for path in (folder / "8" / "model" / "d").iterdir():
        damage(path, "flipped")
    model = checkpoint.to_items(fresh)["model"]
    with pytest.raises(UserError, match=r"checkpoint 8 .* damaged .*others: \[4\]"):
        checkpoint.restore_model(tmp_path / "run", "last", model)
    step, variables = checkpoint.restore_model(tmp_path / "run", "4", model)
    assert step == 4
    assert checkpoint.digest(variables) == checkpoint.digest(
        checkpoint.to_items(states[4])["model"]
    )
    assert sorted(path.name for path in folder.iterdir()) == ["4", "8"]


def test_another_network_is_told_apart_from_damage(saved):
    whole, _, _ = saved
    config = tiny_config()
    config.model.width = 8
    wide = train_step.create_state(
        config, create_model(config), train_step.make_optimizer(config)[0]
    )
    message = r"checkpoint .*/8 is not of .* model.* float32.*; versions.* another --workdir$"
    with pytest.raises(UserError, match=message):
        checkpoint.restore(whole, wide)
    assert (whole / "checkpoints" / "8").exists()


def test_a_checkpoint_that_was_not_evaluated_is_never_the_best(saved, tmp_path):
    whole, states, _ = saved
    shutil.copytree(whole, tmp_path / "run")
    with checkpoint.Saver(tmp_path / "run", 2, 5) as saver:
        saver.save(states[8].replace(step=np.int32(9)), {"loss": float("inf")})
    model = checkpoint.to_items(saved[2])["model"]
    for which, step in (("best", 8), ("last", 9)):
        assert checkpoint.restore_model(tmp_path / "run", which, model)[0] == step
    record = checkpoint.read_record(tmp_path / "run" / "checkpoints" / "9")
    assert record["metrics"] == {"loss": float("inf")}


def test_the_best_is_by_rank_whatever_the_loss(saved, tmp_path):
    state = saved[2]
    with checkpoint.Saver(tmp_path, keep_latest=1, keep_best=1) as saver:
        for step, rank in ((2, 0.5), (4, -0.1), (6, 0.3), (8, 0.2)):
            found = {"loss": 1 / step, "rank": rank}
            saver.save(state.replace(step=np.int32(step)), found)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"4", "8"}
    model = checkpoint.to_items(state)["model"]
    assert checkpoint.restore_model(tmp_path, "best", model)[0] == 4


@pytest.mark.parametrize("which", ["best", "last"])
@pytest.mark.parametrize("part", ["model/d", "checksums"])
def test_a_damaged_checkpoint_is_set_aside_for_the_next(part, which, saved, tmp_path):
    whole, states, fresh = saved
    shutil.copytree(whole, tmp_path / "run")
    model = checkpoint.to_items(fresh)["model"]
    assert checkpoint.restore_model(tmp_path / "run", which, model)[0] == 8
    for path in (tmp_path / "run" / "checkpoints" / "8" / part).iterdir():
        damage(path, "flipped")
    step, variables = checkpoint.restore_model(tmp_path / "run", which, model, skip_damaged=True)
    assert step == 4
    assert checkpoint.digest(variables) == checkpoint.digest(
        checkpoint.to_items(states[4])["model"]
    )
    names = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert names == {"4", "8.damaged"}


def test_what_a_killed_process_left_half_written_or_half_removed_is_removed(saved, tmp_path):
    whole, _, _ = saved
    shutil.copytree(whole, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    for name in (f"8{checkpoint.TEMPORARY}", f"12{checkpoint.TEMPORARY}-123"):
        shutil.copytree(folder / "4", folder / name)
    assert checkpoint.steps_in(folder) == {4, 8}
    with checkpoint.Saver(tmp_path / "run", keep_latest=2, keep_best=5):
        assert {path.name for path in folder.iterdir()} == {"4", "8"}


def test_what_fails_in_the_background_ends_the_run_with_one_line(saved, tmp_path, monkeypatch):
    whole, states, _ = saved
    shutil.copytree(whole, tmp_path / "run")

    def full(*args, **options):
        raise OSError("no space left on the device")

    with (
        pytest.raises(UserError, match=r"cannot be written: no space left on the device; the same"),
        checkpoint.Saver(tmp_path / "run", keep_latest=2, keep_best=5) as saver,
    ):
        monkeypatch.setattr(checkpoint.ocp.Checkpointer, "save", full)
        saver.save(states[8].replace(step=np.int32(9)), {"loss": 0.5})
    assert {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()} == {"4", "8"}


def test_what_is_not_finite_ends_the_run_and_is_not_saved(saved, tmp_path):
    whole, states, _ = saved
    shutil.copytree(whole, tmp_path / "run")
    params = jax.tree.map(lambda leaf: leaf.copy(), states[8].params)
    jax.tree.leaves(params)[-1].flat[-1] = np.inf
    with (
        pytest.raises(UserError, match=r"step 9 .* not finite, which are not saved; a lower"),
        checkpoint.Saver(tmp_path / "run", keep_latest=2, keep_best=5) as saver,
    ):
        state = states[8].replace(step=np.int32(9), params=params)
        saver.save(state, {"loss": 0.5})
    assert {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()} == {"4", "8"}
