"""The quadrotor's flight logs: how they are read and cleaned, and that the score is the protocol's own."""

import importlib.util
import json

import numpy as np
import pytest

from residual_mbrl.datasets import flight_cleaning as cleaning
from residual_mbrl.datasets import nanodrone
from residual_mbrl.errors import LogError


def arrays(rows=200, **changes):
    """A made flight, as the files hold it: hovering, slowly turning."""
    t, g = 0.01 * np.arange(rows), np.random.default_rng(0)
    angle = 0.2 * np.sin(t)
    q = np.stack([np.sin(angle / 2), 0 * t, 0 * t, np.cos(angle / 2)], 1)
    p, v = np.stack([np.sin(t), 0 * t, 1 + 0 * t], 1), np.stack([np.cos(t), 0 * t, 0 * t], 1)
    w = np.stack([0.2 * np.cos(t), 0 * t, 0 * t], 1)
    u = 1700 + 100 * np.sin(np.outer(t, [1, 2, 3, 4])) + g.normal(0, 2, (rows, 4))
    signals = {"p": p, "v": v, "q": q, "w": w, "u": u}
    return {"t": t, **signals, **{f"{n}_raw": x for n, x in signals.items()}, "vbat_raw": 3.8 - 0.01 * t, **changes}


def written(folder, name="square1", **changes):
    """Write a made flight and return its path."""
    np.savez(folder / f"{name}.npz", **arrays(**changes))
    return folder / f"{name}.npz"


def test_a_flight_is_read_in_the_packages_conventions(tmp_path):
    """Quaternions w-x-y-z, krad/s, the type of trajectory as its group, nothing to complain of."""
    log = nanodrone.read_log(written(tmp_path))
    d = arrays()
    assert np.allclose(log.measurements[:, 3:7], d["q"][:, [3, 0, 1, 2]])
    assert np.allclose(log.commands, d["u"] / 1000)
    assert (log.group, log.metadata["warnings"]) == ("square", [])


def test_spikes_are_interpolated_and_what_they_rang_through_the_filter_is_filtered_again(tmp_path):
    """Around a spike filtered speeds come near those without it; far away nothing changes."""
    d = arrays(400)
    spiked, filtered = d["u_raw"].copy(), d["u"].copy()
    spiked[200, 2] = 1.9e6
    filtered[180:220, 2] += 5e4
    log = nanodrone.read_log(written(tmp_path, rows=400, u_raw=spiked, u=filtered))
    assert np.abs(log.commands[:, 2] - d["u"][:, 2] / 1000).max() < 0.05
    assert np.array_equal(log.commands[:100], d["u"][:100] / 1000)
    assert "motor 3: 1 speed spikes up to 1900 krad/s, interpolated" in log.metadata["warnings"]


def test_sign_flips_and_millivolts_are_undone_and_named(tmp_path):
    """A quaternion and its negative are one attitude; a cell of 3800 V is one of 3.8 V."""
    q = arrays()["q"].copy()
    q[50:90] *= -1
    log = nanodrone.read_log(written(tmp_path, q=q, vbat_raw=1000 * arrays()["vbat_raw"]))
    assert np.allclose(log.measurements[:, 3:7], arrays()["q"][:, [3, 0, 1, 2]])
    assert log.metadata["battery"][0] == pytest.approx(3.8)
    assert log.metadata["warnings"] == ["the quaternion changes its sign 2 times", "battery in mV, converted to V"]


def test_a_full_turn_of_yaw_is_continuous(tmp_path):
    """Nothing wraps where yaw passes half a turn."""
    yaw = np.linspace(0, 4 * np.pi, 200)
    q = np.stack([0 * yaw, 0 * yaw, np.sin(yaw / 2), np.cos(yaw / 2)], 1)
    q *= np.where(q[:, 3:] < 0, -1.0, 1.0)  # as attitude estimators give it
    log = nanodrone.read_log(written(tmp_path, q=q))
    assert np.abs(np.diff(log.measurements[:, 3:7], axis=0)).max() < 0.05


def test_dropped_packets_are_filled_and_long_gaps_refused(tmp_path):
    """Three lost rows are interpolated onto the clock; ten are not."""
    d, kept = arrays(), np.delete(np.arange(200), [80, 81, 82])
    log = nanodrone.read_log(written(tmp_path, **{n: a[kept] for n, a in d.items()}))
    assert len(log.measurements) == 200
    assert np.abs(log.measurements[:, :3] - d["p"]).max() < 1e-3
    assert "3 rows of dropped packets, interpolated" in log.metadata["warnings"]
    kept = np.delete(np.arange(200), np.arange(80, 90))
    with pytest.raises(LogError, match="10 rows are missing after row 79"):
        nanodrone.read_log(written(tmp_path, **{n: a[kept] for n, a in d.items()}))


def test_held_rows_and_saturated_motors_are_named(tmp_path):
    """A radio that waits and a motor at its limit leave marks that no filter takes away."""
    d = arrays()
    held = {n: np.repeat(d[n][::2], 2, 0) for n in ("p", "v", "q", "w")}
    u = np.minimum(d["u"], 1740.0)
    warnings = nanodrone.read_log(written(tmp_path, **held, u=u)).metadata["warnings"]
    assert any(w.endswith("% of the rows repeat the one before") for w in warnings)
    assert any("stays at its highest speed" in w for w in warnings)


@pytest.mark.parametrize(("changes", "message"), [
    ({"u_raw": 60 * 1700 / 6.28 * np.ones((200, 4))}, "expected rad/s in flight"),
    ({"q": 2 * arrays()["q"]}, "has length 2"), ({"vbat_raw": np.full(200, 12.0)}, "expected 2.5 to 4.6 V"),
    ({"p": arrays()["p"][:, :2]}, "expected rows of"),
    ({"w": np.where(np.arange(600).reshape(200, 3) == 30, np.nan, 0.1)}, "not finite in row 10"),
    ({"t": np.zeros(200)}, "time does not rise at row 1"), ({"t": 0.02 * np.arange(200)}, "rows come every 0.02 s")])
def test_bad_logs_are_named(tmp_path, changes, message):
    """File, entry and what was expected."""
    with pytest.raises(LogError, match=message):
        nanodrone.read_log(written(tmp_path, **changes))


def test_a_split_without_flights_is_named(tmp_path):
    """The part that is missing."""
    (tmp_path / "split.json").write_text(json.dumps({"train": []}))
    with pytest.raises(LogError, match="no flights of part 'train'"):
        nanodrone.read(tmp_path, ["train"])


def test_errors_are_distances_and_angles(tmp_path):
    """A prediction that is right errs by nothing, in either sign of the quaternion; a turn of .3 rad errs by that."""
    log = nanodrone.read_log(written(tmp_path))
    rows = np.arange(150)[:, None] + np.arange(1, 51)
    x = log.measurements[rows]
    right = nanodrone.Prediction(x[..., :3], -2 * x[..., 3:7], x[..., 7:10], x[..., 10:])
    assert np.abs(nanodrone.errors(log, right)).max() < 1e-12
    angle = 0.2 * np.sin(0.01 * rows) + 0.3
    turned = np.stack([np.cos(angle / 2), np.sin(angle / 2), 0 * angle, 0 * angle], -1)
    found = nanodrone.errors(log, right._replace(quaternion=turned, position=x[..., :3] + [3.0, 4.0, 0.0]))
    assert np.allclose(found[..., 0], 5.0) and np.allclose(found[..., 2], 0.3)
    with pytest.raises(ValueError, match="expected a velocity of shape"):
        nanodrone.errors(log, right._replace(velocity=x[:, :4, 7:10]))


def test_spikes_everywhere_are_no_spikes():
    """A motor at rest is not repaired."""
    with pytest.raises(LogError, match="100 % of the speeds of motor 1"):
        cleaning.without_spikes("log", np.zeros((10, 1)))


def sums(logs, predict):
    """Sums of errors in the order of the quantities."""
    found = {m.metric: m.value for m in nanodrone.score(logs, {log.name: predict(log) for log in logs}, "x")}
    return [found[f"sum_{q}"] for q in nanodrone.QUANTITIES]


def test_the_score_is_that_of_the_protocol(data_root):
    """Naive and published physics on the validation flights, to the digits that the data's README gives for them."""
    logs = nanodrone.read(data_root / "nanodrone", ["val"]).logs["val"]
    assert [log.group for log in logs] == ["square", "random", "chirp"]
    assert sums(logs, nanodrone.naive) == pytest.approx([11.2795, 26.3849, 7.3735, 35.3959], abs=1e-4)
    # chirp4 holds speed spikes, which the reader repairs and those numbers do not
    assert sums(logs, nanodrone.published) == pytest.approx([2.5057, 11.8034, 6.1052, 35.3959], rel=5e-3)


@pytest.mark.parametrize("signals", ["filtered", "raw"])
def test_the_score_is_that_of_the_metrics_own_program(data_root, signals):
    """At every reported horizon, on filtered and raw signals of a flight whose speeds need no repair."""
    place = importlib.util.spec_from_file_location("protocol", data_root / "score.py")
    protocol = importlib.util.module_from_spec(place)
    place.loader.exec_module(protocol)
    suffix = "_raw" if signals == "raw" else ""
    protocol.ROOT = data_root
    log = nanodrone.read_log(data_root / "nanodrone" / "square4.npz", signals)
    own = protocol.load("nanodrone", "square4")
    expected, _ = protocol.nanodrone_score({"square4": protocol.nanodrone_physics(own, suffix)}, suffix=suffix)
    found = {(m.metric, m.horizon): m.value for m in nanodrone.score([log], {"square4": nanodrone.published(log)}, "x")}
    for (one, ten, fifty, total), q in zip(expected.values(), nanodrone.QUANTITIES, strict=True):
        got = [found[f"{q}_h1", 1], found[f"{q}_h10", 10], found[f"{q}_h50", 50], found[f"sum_{q}", None]]
        assert got == pytest.approx([one, ten, fifty, total], rel=1e-6)
