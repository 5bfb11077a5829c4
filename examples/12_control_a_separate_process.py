"""Control a plant that lives elsewhere: a MuJoCo cart-pole in a process of its own, reached over a socket at 50 Hz of real time.

The plant is 20 % heavier than the data sheet says, it rubs, its motor lags by 15 ms, and commands take 20 ms to arrive. Ten seconds of
swinging tell masses, friction and the delay of the command; then the pole is balanced along a moving reference. On the way plans are
slowed thirtyfold for a while, the plant sends a fifth of a second of NaN, and somebody writes a wrong mass into the model. The figure
shows tracking, the time of each plan against the deadline, and which law each command came from.
"""

from __future__ import annotations

import gc
import socket
import struct
import subprocess
import sys
import time as clock
from collections import deque
from pathlib import Path

import mujoco
import numpy as np
import torch
import tyro
from matplotlib.figure import Figure
from numpy.typing import NDArray

from residual_mbrl.controller import LQR, Controller, Hold, Level
from residual_mbrl.costs import QuadraticCost
from residual_mbrl.dynamics import ResidualDynamics
from residual_mbrl.effects import Delay
from residual_mbrl.figure_style import panel
from residual_mbrl.identification import IdentifyOptions, identify
from residual_mbrl.physics.cartpole import CartPole
from residual_mbrl.planners.ilqr import ILQR, ILQROptions
from residual_mbrl.planners.limits import Limits
from residual_mbrl.planners.plan import Plan
from residual_mbrl.sensors import Column, Sensor
from residual_mbrl.trajectories import Trajectory
from residual_mbrl.windows import cut_windows

Array = NDArray[np.float64]
PERIOD, DEADLINE, STEPS, LIMIT = 0.02, 0.015, 40, 12.0
DELAY, LAG, STEP = 0.020, 0.015, 0.001
NOISE = np.array([2e-4, 4e-4, 2e-3, 4e-3])
PLANT = """<mujoco><option timestep="0.001" integrator="RK4"/><worldbody><body>
<joint name="cart" type="slide" axis="1 0 0" damping="0.5" frictionloss="0.3"/><inertial pos="0 0 0" mass="1.2" diaginertia=".01 .01 .01"/>
<body><joint name="angle" axis="0 -1 0" damping="0.003"/><inertial pos="0 0 -.5" mass="0.12" diaginertia=".002 .002 .0001"/></body>
</body></worldbody><actuator><motor joint="cart"/></actuator></mujoco>"""


def serve(port: int) -> None:
    """Be the plant: send a time stamp and a state every period, whatever comes back; a command acts when it has arrived."""
    model = mujoco.MjModel.from_xml_string(PLANT)
    data, rng, line, motor = mujoco.MjData(model), np.random.default_rng(0), deque([(-1.0, 0.0)]), 0.0
    link = socket.create_connection(("127.0.0.1", port))
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    link.setblocking(False)
    begun, tick = clock.perf_counter(), 0
    while True:
        link.sendall(struct.pack("5d", tick * PERIOD, *(np.concatenate([data.qpos, data.qvel]) + NOISE * rng.standard_normal(4))))
        for i in range(round(PERIOD / STEP)):
            now = tick * PERIOD + i * STEP
            clock.sleep(max(0.0, begun + now - clock.perf_counter()))
            try:
                while message := link.recv(16, socket.MSG_WAITALL):
                    upright, command = struct.unpack("2d", message)
                    if upright:
                        mujoco.mj_resetData(model, data)
                        data.qpos[1] = np.pi
                    line.append((now + DELAY, command))
                return  # the other side has closed
            except BlockingIOError:
                pass
            except ConnectionError:
                return
            while len(line) > 1 and line[1][0] <= now:
                line.popleft()
            motor += STEP / LAG * (line[0][1] - motor)
            data.ctrl[0] = np.clip(motor, -LIMIT, LIMIT)
            mujoco.mj_step(model, data)
        tick += 1


class Line:
    """The other end of the socket."""

    def __init__(self) -> None:
        server = socket.create_server(("127.0.0.1", 0))
        self.process = subprocess.Popen([sys.executable, __file__, "--plant", str(server.getsockname()[1])])
        self._link, _ = server.accept()
        self._link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def read(self) -> tuple[float, Array]:
        """Wait for the next state; return the time now by the plant's clock, and the state."""
        values = struct.unpack("5d", self._link.recv(40, socket.MSG_WAITALL))
        return values[0], np.array(values[1:])

    def send(self, command: float, *, upright: bool = False) -> None:
        self._link.sendall(struct.pack("2d", float(upright), command))

    def close(self) -> None:
        self._link.close()
        self.process.wait(10)


def learn(line: Line, seconds: float) -> tuple[ResidualDynamics, float]:
    """Swing the hanging pole for a while; return the identified model and the delay of its commands [s]."""
    rows, rate = [], np.array([2.3, 4.1, 6.7])
    while not rows or rows[-1][0] < seconds:
        time, state = line.read()
        push = 5.0 * float(np.sin(rate * time).sum()) / 1.7 - 4.0 * state[0] - 1.5 * state[2]
        line.send(push)
        rows.append([time, *state, push])
    log, nominal = np.array(rows), ResidualDynamics(CartPole(dt=PERIOD, substeps=2))
    names = nominal.space.state_names
    sensor = Sensor(space=nominal.space, columns=tuple(Column(name=n, source=n, noise=s) for n, s in zip(names, NOISE, strict=True)),
                    commands={"force": [Delay(nominal=0.02, upper=0.08)]})
    even = PERIOD * np.arange(len(log))
    trajectory = Trajectory(name="swinging", command_time=even, commands=log[:, 5:], command_names=("force",), measurement_time=even,
                            measurements=log[:, 1:5], measurement_names=names)
    found = identify(nominal, sensor, cut_windows([trajectory], PERIOD, horizon=25), IdentifyOptions(candidates=1, starts=1))
    return found.dynamics, found.sensor_values["force.delay"]


class Slowed(ILQR):
    """iLQR on a computer that other work slows down from time to time."""

    slowdown = 1.0

    def plan(self, *args: object, **options: object) -> Plan:
        """Return the plan, late."""
        begun = clock.perf_counter()
        found = super().plan(*args, **options)  # type: ignore[arg-type]
        clock.sleep((self.slowdown - 1.0) * (clock.perf_counter() - begun))
        return found


def reference(time: Array) -> Array:
    goal = np.zeros((len(time), 4))
    goal[:, 0], goal[:, 1], goal[:, 2] = 0.4 * np.sin(0.9 * time), np.pi, 0.36 * np.cos(0.9 * time)
    return goal


def make_controller(identified: ResidualDynamics, sheet: ResidualDynamics, latency: float) -> Controller:
    f = lambda *x: torch.tensor(x)  # noqa: E731
    weights = {"space": sheet.space, "state": f(10.0, 10.0, 0.5, 0.5), "action": f(0.01), "terminal": f(200.0, 800.0, 80.0, 80.0)}

    def cost(time: float) -> QuadraticCost:
        return QuadraticCost(**weights, target=torch.from_numpy(reference(time + PERIOD * np.arange(STEPS + 1))).float(), trajectory=True)

    limits = Limits(action_lower=-LIMIT, action_upper=LIMIT, action_rate=500.0)
    levels = [Level(planner=Slowed(model, cost(0.0), ILQROptions(iterations=3), steps=STEPS, limits=limits), name=name)
              for model, name in ((identified, "identified"), (sheet, "data sheet"))]
    still = QuadraticCost(**weights, target=f(0.0, np.pi, 0.0, 0.0).float())
    return Controller(levels[0], fallback=[levels[1], LQR(identified, still), Hold([0.0])], period=PERIOD, deadline=DEADLINE, cost=cost,
                      latency=latency)


def draw(path: Path, rows: Array, laws: list[str], controller: Controller) -> None:
    """Draw tracking, plans against the deadline, and laws over time."""
    time, figure = rows[:, 0], Figure(figsize=(7.2, 6.0), layout="constrained")
    top, angle, solve, law = figure.subplots(4, 1, sharex=True, height_ratios=[2, 1.3, 1.6, 1])
    panel(top, y="cart [m]").plot(time, reference(time)[:, 0], color="#8C8C8C", label="reference")
    top.plot(time, rows[:, 1], color="#D55E00", label="as measured")
    top.legend(fontsize=8, frameon=False)
    panel(angle, y="angle from\nupright [rad]").plot(time, rows[:, 2] - np.pi, color="#D55E00")
    panel(solve, y="plan [ms]").semilogy(time, 1e3 * rows[:, 3], ".", markersize=3, color="#0072B2")
    solve.axhline(1e3 * DEADLINE, color="black", linewidth=0.8)
    solve.text(time[-1], 1e3 * DEADLINE, "deadline", ha="right", va="bottom", fontsize=8)
    names = [n for n in controller.chain.names if n in laws]
    panel(law, x="time [s]").step(time, [names.index(n) for n in laws], where="post", color="#0072B2")
    law.set_yticks(range(len(names)), names, fontsize=8)
    law.invert_yaxis()
    for entry in (e for e in controller.log if e.subject != "plan"):
        for axes in (top, angle, solve):
            axes.axvline(entry.time, color="#CC79A7", linewidth=0.6)
    figure.savefig(path, dpi=150)


def main(out: Path = Path("loop"), seconds: float = 20.0, learning: float = 10.0, plant: int = 0) -> dict[str, object]:
    """Learn the plant, control it, and draw what happened.

    Args:
        out: Folder of the figure and the log.
        seconds: Length of the run [s].
        learning: Seconds of swinging before it.
        plant: For the process that is the plant: where to connect to.
    """
    if plant:
        serve(plant)
        return {}
    torch.set_num_threads(1)
    line = Line()
    identified, delay = learn(line, learning)
    line.close()
    mass = identified.values["cart_mass"]
    controller = make_controller(identified, ResidualDynamics(CartPole(dt=PERIOD, substeps=2)), delay)
    gc.collect()
    gc.freeze()  # a full collection over all that torch has loaded takes longer than a tick
    line, rows, laws, missed = Line(), [], [], 0
    while not rows or rows[-1][0] < seconds:
        time, state = line.read()
        share, begun = time / seconds, clock.perf_counter()
        controller.levels[0].planner.slowdown = 30.0 if 0.35 < share < 0.5 else 1.0  # type: ignore[attr-defined]
        controller.levels[0].dynamics.values["cart_mass"] = 0.2 if 0.82 < share < 0.9 else mass
        blind = 0.7 * seconds <= time < 0.7 * seconds + 0.2
        command = controller.act(np.full(4, np.nan) if blind else state, time)
        line.send(command[0], upright=not rows)
        missed += clock.perf_counter() - begun > DEADLINE
        rows.append([time, *state[:2], controller.last.solve])
        laws.append(controller.last.law)
    line.close()
    controller.close()
    out.mkdir(parents=True, exist_ok=True)
    controller.log.write(out / "switches.jsonl")
    table = np.array(rows)[1:]
    draw(out / "loop.png", table, laws[1:], controller)
    rms = float(np.sqrt(np.mean((table[:, 1] - reference(table[:, 0])[:, 0]) ** 2)))
    print(f"identified: cart {mass:.3f} kg (1.2), pole {identified.values['pole_mass']:.3f} kg (0.12), "
          f"delay and lag {1e3 * delay:.0f} ms (20 + 15)")
    print(f"{len(rows)} ticks, {missed} after the deadline, cart {1e3 * rms:.0f} mm rms off its reference, {len(controller.log)} switches:")
    for entry in controller.log:
        print(entry.to_json())
    return {"ticks": len(rows), "rms": rms, "reasons": [e.reason for e in controller.log], "delay": delay,
            "upright": bool(np.abs(table[:, 2] - np.pi).max() < 1.0)}


if __name__ == "__main__":
    tyro.cli(main)
