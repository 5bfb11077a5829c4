"""The state of a training comes back as it was saved, belongs to one problem, and follows the rules of early stopping."""

from __future__ import annotations

import errno
import json

import numpy as np
import pytest

from residual_mbrl import checkpoints, files
from residual_mbrl.checkpoints import Round, Training
from residual_mbrl.errors import ModelError, OutputError

STATE = Training(z=np.array([1 / 3, -1e-300, np.pi]), best=np.array([0.1 + 0.2, 2.0, 3.0]), best_score=1 / 7, stage=2, round=1, stale=1,
                 history=(Round(horizon=5, train=0.5, validation=1 / 9, seconds=0.25),
                          Round(horizon=7, train=1e-9, validation=2.0, seconds=3.0)),
                 converged=True)


def scored(state, *scores, rounds=10, patience=2):
    for k, score in enumerate(scores):
        state = state.advance(np.array([float(k)]), Round(horizon=5, train=0.0, validation=score, seconds=0.0),
                              rounds=rounds, patience=patience)
    return state


def fresh():
    return Training(z=np.array([-1.0]), best=np.array([-1.0]))


def test_comes_back_to_the_last_bit(tmp_path):
    """Unknowns, scores and history are equal, not close."""
    checkpoints.save(tmp_path / "state.npz", STATE, "a problem")
    found = checkpoints.load(tmp_path / "state.npz", "a problem")
    assert found is not None
    for name in ("z", "best"):
        assert np.array_equal(getattr(found, name), getattr(STATE, name))
    for name in ("best_score", "stage", "round", "stale", "history", "converged"):
        assert getattr(found, name) == getattr(STATE, name)


def test_an_untouched_state_comes_back(tmp_path):
    """A best score of infinity, which JSON has no number for, survives."""
    checkpoints.save(tmp_path / "state.npz", fresh(), "a problem")
    found = checkpoints.load(tmp_path / "state.npz", "a problem")
    assert found is not None
    assert found.best_score == np.inf


def test_no_file_is_no_state(tmp_path):
    """A first run finds nothing and starts anew."""
    assert checkpoints.load(tmp_path / "state.npz", "a problem") is None


def test_another_problem_is_refused(tmp_path):
    """A checkpoint of other data or options is named, with what to do about it."""
    checkpoints.save(tmp_path / "state.npz", STATE, "a problem")
    with pytest.raises(ModelError, match=r"state\.npz: checkpoint of another model, data or options; delete it"):
        checkpoints.load(tmp_path / "state.npz", "another problem")


def _without(name):
    def damage(whole, path):
        with np.load(path) as file:
            arrays = {n: file[n] for n in file.files if n != name}
            meta = json.loads(str(file["meta"]))
        if name in meta:
            arrays["meta"] = np.array(json.dumps({n: x for n, x in meta.items() if n != name}))
        np.savez(path, **arrays)
        return path.read_bytes()

    return damage


DAMAGE = {"empty": lambda whole, _: b"", "truncated": lambda whole, _: whole[: len(whole) // 2], "text": lambda whole, _: b"hello\n" * 20,
          "flipped": lambda whole, _: whole[:100] + bytes([whole[100] ^ 255]) + whole[101:], "no z": _without("z"),
          "no fingerprint": _without("fingerprint"), "no history": _without("history"),
          "a pickle": lambda whole, _: b"\x80\x04N."}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_one_clear_error(tmp_path, damage):
    """A file that is no whole checkpoint is refused by name, whatever is wrong with it."""
    path = tmp_path / "state.npz"
    checkpoints.save(path, STATE, "a problem")
    path.write_bytes(DAMAGE[damage](path.read_bytes(), path))
    with pytest.raises(ModelError, match=r"state\.npz: not a training checkpoint .*delete it to start anew"):
        checkpoints.load(path, "a problem")


def test_full_disk_keeps_the_older_state(tmp_path, monkeypatch):
    """A checkpoint that cannot be written leaves the last one and nothing else."""
    path = tmp_path / "state.npz"
    checkpoints.save(path, STATE, "a problem")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        checkpoints.save(path, fresh(), "a problem")
    found = checkpoints.load(path, "a problem")
    assert found is not None
    assert found.stage == STATE.stage
    assert [p.name for p in tmp_path.iterdir()] == ["state.npz"]


def test_better_rounds_become_the_best():
    """The best of a horizon is the round with the lowest validation score, not the last."""
    state = scored(fresh(), 3.0, 1.0, 2.0)
    assert state.best == [1.0]
    assert state.best_score == 1.0
    assert (state.stage, state.round, state.stale) == (0, 3, 1)


def test_patience_ends_a_horizon_at_its_best():
    """After ``patience`` rounds without a better score the next horizon starts from the best."""
    state = scored(fresh(), 3.0, 1.0, 2.0, 2.0)
    assert (state.stage, state.round, state.stale, state.best_score) == (1, 0, 0, np.inf)
    assert state.z == state.best == [1.0]
    assert len(state.history) == 4


def test_rounds_end_a_horizon():
    """A horizon ends after its last round even while it still improves."""
    state = scored(fresh(), 3.0, 2.0, 1.0, rounds=3)
    assert (state.stage, float(state.z[0])) == (1, 2.0)


def test_a_score_that_is_not_finite_is_never_the_best():
    """A diverged round counts as no better."""
    state = scored(fresh(), np.nan, np.inf)
    assert state.stage == 1
    assert state.best == [-1.0]


def test_the_best_start_of_a_search_is_kept():
    """Of several starts the cheapest is kept, with whether it converged."""
    state = fresh()
    for k, (cost, converged) in enumerate([(3.0, True), (1.0, False), (2.0, True)]):
        state = state.next_start(np.array([float(k)]), Round(horizon=5, train=cost, validation=cost, seconds=0.0), converged=converged)
    assert (state.stage, float(state.best[0]), state.best_score, state.converged) == (3, 1.0, 1.0, False)
