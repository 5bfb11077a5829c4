"""The kernels of a fused rollout: one launch forward over the whole horizon and batch, one launch back.

A system is two functions of one world, written once in scalars and small vectors:

    z  = features(x, u, c)             what the networks see
    x' = advance(x, u, y, p, c)        one step, given the networks' outputs y = net(z)

with states x, actions u, physical parameters p and constants c (normalisers and the like, not differentiated). Everything
that is particular to a residual or an integrator is in ``advance``; the kernels know networks and time only. A tanh behind a
network is the kernel's, which does a register in the time of a fifth of a libm call.

The reverse sweep takes each step's units from memory, or computes them again from the stored states, and goes back through
``advance`` (``wp.grad`` of the weighted step: the vector-Jacobian products), the networks (by hand, see ``mlp``) and
``features`` (``wp.grad``). The functions of one world run lane by lane: a cart-pole's step costs 0.3 µs for 16 worlds and its
adjoint 0.4 µs, beside 1.3 and 1.1 µs of a 5-64-64-2 network.

Traps of Warp 1.19 that the order of statements below avoids:

- In a kernel without a backward pass, ``wp.grad`` of a function whose callees were built for a forward call before is silently
  zero. So ``wp.grad`` stands before any forward call of the same function (``_first``), and the tests differentiate nested ones.
- ``wp.static(functions[i])`` in a generic function is left out of the hash that finds compiled code: two systems would share a
  kernel. Functions are joined by closures instead.
- Its own reverse mode through dynamic loops is wrong: nothing here relies on it, and ``advance`` must not hold one.
"""

from typing import Any, NamedTuple

import warp as wp

from residual_mbrl.kernels.lanes import vector
from residual_mbrl.kernels.mlp import Schedule

OPTIONS = {"enable_backward": False, "module": "unique",
           "module_options": {"cpu_compiler_flags": f"{wp.config.cpu_compiler_flags} -ffp-contract=fast", "max_unroll": 256}}
"""Fused multiply-adds across statements: tanh takes 2.2 ns a register instead of 3.6; NaN and infinity stay what they are."""


class System(NamedTuple):
    """A model of one world as Warp functions, and the lengths of their vectors (at least 1 each; see the module's text)."""

    features: Any
    """``features(x, u, c) -> z``; any function of this signature where there is no network."""
    advance: Any
    """``advance(x, u, y, p, c) -> x'``."""
    nx: int
    nu: int
    nz: int
    ny: int
    np: int
    nc: int


class Kernels(NamedTuple):
    """The two kernels of a system under a schedule."""

    forward: Any
    reverse: Any


def build(system: System, schedule: Schedule) -> Kernels:
    """Make the kernels of a system; Warp compiles each when it is first launched, and keeps it on disk."""
    return Kernels(_forward(system, schedule), _reverse(system, schedule))


def _forward(system: System, schedule: Schedule) -> Any:
    features, advance = system.features, system.advance
    x_, u_, y_ = vector(system.nx), vector(system.nu), vector(system.ny)
    p_, c_ = vector(system.np), vector(system.nc)
    unit, weight, group = schedule.unit, schedule.weight, schedule.group
    worlds, network = schedule.worlds, schedule.forward

    @wp.kernel(**OPTIONS)
    def forward_rollout(
        # Model:
        weights: wp.array(dtype=weight), layers: wp.array2d(dtype=int), inputs: wp.array(dtype=int), outputs: wp.array(dtype=int),
        constants: wp.array(dtype=c_), parameters: wp.array(dtype=p_),
        # In:
        first: int, batch: int, horizon: int, keep: int, worker: int, nets: int,
        initial: wp.array(dtype=x_), actions: wp.array2d(dtype=u_),
        # Out:
        states: wp.array2d(dtype=x_), units: wp.array2d(dtype=unit), scalars: wp.array3d(dtype=float),
        groups: wp.array2d(dtype=group),
    ):
        block = first + wp.tid()
        begin = block * worlds
        end = wp.min(begin + worlds, batch)
        if begin >= batch:
            return
        c = constants[0]
        for b in range(begin, end):
            states[b, 0] = initial[b]
        for t in range(horizon):
            row = worker
            if keep != 0:
                row = block * horizon + t
            for b in range(begin, end):
                z = features(states[b, t], actions[b, t], c)
                for i in range(inputs.shape[0]):
                    scalars[row, inputs[i], b - begin] = z[i]
            for layer in range(nets):
                network(weights, layers, layer, units, groups, row)
            for b in range(begin, end):
                y = y_()
                for i in range(outputs.shape[0]):
                    y[i] = scalars[row, outputs[i], b - begin]
                states[b, t + 1] = advance(states[b, t], actions[b, t], y, parameters[b], c)

    return forward_rollout


def _reverse(system: System, schedule: Schedule) -> Any:
    features, advance = system.features, system.advance
    x_, u_, z_, y_ = vector(system.nx), vector(system.nu), vector(system.nz), vector(system.ny)
    p_, c_ = vector(system.np), vector(system.nc)
    unit, weight, group = schedule.unit, schedule.weight, schedule.group
    worlds, network, adjoint, accumulate = schedule.worlds, schedule.forward, schedule.reverse, schedule.accumulate

    @wp.func
    def weighted_advance(x: x_, u: u_, y: y_, p: p_, c: c_, by: x_) -> x_:
        return wp.cw_mul(by, advance(x, u, y, p, c))

    @wp.func
    def weighted_features(x: x_, u: u_, c: c_, by: z_) -> z_:
        return wp.cw_mul(by, features(x, u, c))

    @wp.kernel(**OPTIONS)
    def reverse_rollout(
        # Model:
        weights: wp.array(dtype=weight), layers: wp.array2d(dtype=int), inputs: wp.array(dtype=int), outputs: wp.array(dtype=int),
        squashed: wp.array(dtype=int), constants: wp.array(dtype=c_), parameters: wp.array(dtype=p_),
        # In:
        first: int, batch: int, horizon: int, keep: int, worker: int, nets: int, chunk: int, learn: int,
        states: wp.array2d(dtype=x_), actions: wp.array2d(dtype=u_), grad_states: wp.array2d(dtype=x_),
        # Scratch:
        units: wp.array2d(dtype=unit), scalars: wp.array3d(dtype=float), groups: wp.array2d(dtype=group),
        deltas: wp.array2d(dtype=unit), delta_scalars: wp.array3d(dtype=float), delta_groups: wp.array2d(dtype=group),
        # Out:
        grad_initial: wp.array(dtype=x_), grad_actions: wp.array2d(dtype=u_), grad_parameters: wp.array(dtype=p_),
        gradients: wp.array2d(dtype=unit),
    ):
        block = first + wp.tid()
        begin = block * worlds
        end = wp.min(begin + worlds, batch)
        if begin >= batch:
            return
        c = constants[0]
        if horizon < 0:  # _first: never runs, but has Warp build every adjoint before a forward call of the same functions
            _gx, _gu, _gc, _gz = wp.grad(weighted_features)(states[0, 0], actions[0, 0], c, z_())
        for b in range(begin, end):
            grad_initial[b] = x_()
            grad_parameters[b] = p_()
        for back in range(horizon):
            t = horizon - 1 - back
            delta_row = worker * chunk + t % chunk
            row = block * horizon + t
            if keep == 0:
                row = delta_row
                if nets != 0:
                    for b in range(begin, end):
                        z = features(states[b, t], actions[b, t], c)
                        for i in range(inputs.shape[0]):
                            scalars[row, inputs[i], b - begin] = z[i]
                    for lane in range(end - begin, scalars.shape[2]):  # lanes without a world: what they hold is from another block
                        for i in range(inputs.shape[0]):
                            scalars[row, inputs[i], lane] = 0.0
                    for layer in range(nets):
                        network(weights, layers, layer, units, groups, row)
            for b in range(begin, end):
                y = y_()
                for i in range(outputs.shape[0]):
                    y[i] = scalars[row, outputs[i], b - begin]
                by = grad_initial[b] + grad_states[b, t + 1]
                gx, gu, gy, gp, _gc, _next = wp.grad(weighted_advance)(states[b, t], actions[b, t], y, parameters[b], c, by)
                grad_initial[b] = gx
                grad_actions[b, t] = gu
                grad_parameters[b] = grad_parameters[b] + gp
                for i in range(outputs.shape[0]):
                    d = gy[i]
                    if squashed[i] != 0:
                        d = d - d * y[i] * y[i]
                    delta_scalars[delta_row, outputs[i], b - begin] = d
            if nets != 0:
                for lane in range(end - begin, scalars.shape[2]):
                    for i in range(outputs.shape[0]):
                        delta_scalars[delta_row, outputs[i], lane] = 0.0
                for behind in range(nets):
                    adjoint(weights, layers, nets - 1 - behind, units, deltas, delta_groups, row, delta_row)
                for b in range(begin, end):
                    gz = z_()
                    for i in range(inputs.shape[0]):
                        gz[i] = delta_scalars[delta_row, inputs[i], b - begin]
                    gx, gu, _gc, _z = wp.grad(weighted_features)(states[b, t], actions[b, t], c, gz)
                    grad_initial[b] = grad_initial[b] + gx
                    grad_actions[b, t] = grad_actions[b, t] + gu
                if learn != 0 and t % chunk == 0:
                    steps = wp.min(chunk, horizon - t)
                    for layer in range(nets):
                        accumulate(layers, layer, groups, deltas, delta_groups, row, delta_row, steps, worker, gradients)
        for b in range(begin, end):
            grad_initial[b] = grad_initial[b] + grad_states[b, 0]

    return reverse_rollout


@wp.kernel(**OPTIONS)
def pack_weights(flat: wp.array(dtype=float), packing: wp.array(dtype=int), packed: wp.array(dtype=float)):
    """Order the flat weights as a schedule wants them; padding is zero."""
    i = wp.tid()
    value = float(0.0)  # noqa: UP018  # a literal would be a constant to Warp
    if packing[i] >= 0:
        value = flat[packing[i]]
    packed[i] = value


@wp.kernel(**OPTIONS)
def gather_gradients(gradients: wp.array2d(dtype=float), gathering: wp.array(dtype=int), lanes: int, workers: int,
                     flat: wp.array(dtype=float)):
    """Sum the gradients of all workers and lanes in the order of the flat weights."""
    i = wp.tid()
    at = gathering[i] * lanes
    a0 = float(0.0)  # noqa: UP018  # a literal would be a constant to Warp
    a1 = float(0.0)  # noqa: UP018  # a literal would be a constant to Warp
    a2 = float(0.0)  # noqa: UP018  # a literal would be a constant to Warp
    a3 = float(0.0)  # noqa: UP018  # a literal would be a constant to Warp
    for k in range(workers):
        if lanes == 1:
            a0 += gradients[k, at]
        for quad in range(lanes // 4):  # four chains of sums, as one waits four cycles for each addition
            a0 += gradients[k, at + 4 * quad]
            a1 += gradients[k, at + 4 * quad + 1]
            a2 += gradients[k, at + 4 * quad + 2]
            a3 += gradients[k, at + 4 * quad + 3]
    flat[i] = (a0 + a1) + (a2 + a3)
