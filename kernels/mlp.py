"""Networks inside a kernel: packed weights, forward, adjoint and weight gradients, in two schedules of one interface.

A network is a table of layers that the kernel reads at run time, so one compiled kernel serves every width and depth.
A *row* holds all units of one step of one block of worlds, each network's inputs, hidden units and outputs in segments; a
*slot* is the place of a unit in its row. Rows of deltas (the loss by a layer's input sum) have the same layout.

- ``lanes``: a block is as many worlds as a register has lanes. Eight outputs are summed at a time, so that eight
  multiply-adds are in flight; weights are packed by eight outputs. 190 GFLOP/s measured on one Zen 5 core for a 64 x 64
  layer (16 outputs by 2 vectors of worlds reach 230; BLAS 90 for the same shape).
- ``units``: a block is one world, and a register holds 16 units of a layer: no lane is wasted on a batch of one.

Weight gradients are products over all rows of a chunk of time: a tile of them stays in registers while the rows stream by.

Sums start from ``v()`` and what they are added to comes last: an accumulator that starts from an array's element does not stay
in a register (three times slower, Warp 1.19). Reading an entry of an array costs one or two integer multiplications, as much as a
multiply-add of a register, so inner loops read matrices of several registers at once: the product with one world's units went
from 200 to 60 ns for a 64 x 64 layer. A register read across a cache line costs double: memory is aligned to 64 bytes.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import warp as wp

from residual_mbrl.kernels.lanes import tanh_of, vector

TABLE = ("inputs", "outputs", "source", "target", "forward", "bias", "reverse", "gradient", "bias_gradient", "hidden", "behind_hidden")
"""Columns of the layer table: sizes, slots of both ends, places of the packed weights and of their gradients, and whether a tanh
follows the layer or stands before it."""
N_IN, N_OUT, SOURCE, TARGET, FORWARD, BIAS, REVERSE, GRADIENT, BIAS_GRADIENT, HIDDEN, BEHIND = (wp.constant(i) for i in range(len(TABLE)))
WIDE = 16


class Schedule(NamedTuple):
    """How a network is laid over registers."""

    name: str
    worlds: int
    """Worlds of a block."""
    unit: Any
    """Vector type of stored units: worlds of one unit, or units of one world."""
    weight: Any
    """Vector type of packed weights: outputs of one input."""
    group: Any
    """Type by which the weight gradients read several units at once."""
    pad: int
    """Slots of a segment are a multiple of this."""
    per_weight: int
    """Numbers in one entry of the packed weights."""
    per_unit: int
    """Slots in one stored vector."""
    inputs: int
    """Inputs that the weight gradients take at once."""
    forward: Any
    reverse: Any
    accumulate: Any


@cache
def lanes(worlds: int) -> Schedule:
    """Return the schedule with one world a lane."""
    v, w8 = vector(worlds), vector(8)
    m4 = wp.types.matrix(shape=(4, worlds), dtype=wp.float32)
    tanh = tanh_of(worlds)

    @wp.func
    def lane_forward(weights: wp.array(dtype=w8), layers: wp.array2d(dtype=int), layer: int, units: wp.array2d(dtype=v),
                     groups: wp.array2d(dtype=m4), row: int):
        n = layers[layer, N_IN]
        source = layers[layer, SOURCE]
        target = layers[layer, TARGET]
        hidden = layers[layer, HIDDEN]
        for j in range((layers[layer, N_OUT] + 7) // 8):
            at = layers[layer, FORWARD] + j * n
            b = weights[layers[layer, BIAS] + j]
            a0 = v(b[0])
            a1 = v(b[1])
            a2 = v(b[2])
            a3 = v(b[3])
            a4 = v(b[4])
            a5 = v(b[5])
            a6 = v(b[6])
            a7 = v(b[7])
            for i in range(n):
                x = units[row, source + i]
                w = weights[at + i]
                a0 += w[0] * x
                a1 += w[1] * x
                a2 += w[2] * x
                a3 += w[3] * x
                a4 += w[4] * x
                a5 += w[5] * x
                a6 += w[6] * x
                a7 += w[7] * x
            out = target + 8 * j
            units[row, out] = a0
            units[row, out + 1] = a1
            units[row, out + 2] = a2
            units[row, out + 3] = a3
            units[row, out + 4] = a4
            units[row, out + 5] = a5
            units[row, out + 6] = a6
            units[row, out + 7] = a7
        if hidden != 0:  # in a pass of its own: eight at once do not fit the registers
            for j in range(layers[layer, N_OUT]):
                units[row, target + j] = tanh(units[row, target + j])

    @wp.func
    def lane_reverse(weights: wp.array(dtype=w8), layers: wp.array2d(dtype=int), layer: int, units: wp.array2d(dtype=v),
                     deltas: wp.array2d(dtype=v), delta_groups: wp.array2d(dtype=m4), row: int, delta_row: int):
        m = layers[layer, N_OUT]
        source = layers[layer, SOURCE]
        target = layers[layer, TARGET]
        hidden = layers[layer, BEHIND]
        for i in range((layers[layer, N_IN] + 7) // 8):
            at = layers[layer, REVERSE] + i * m
            a0 = v()
            a1 = v()
            a2 = v()
            a3 = v()
            a4 = v()
            a5 = v()
            a6 = v()
            a7 = v()
            for j in range(m):
                d = deltas[delta_row, target + j]
                w = weights[at + j]
                a0 += w[0] * d
                a1 += w[1] * d
                a2 += w[2] * d
                a3 += w[3] * d
                a4 += w[4] * d
                a5 += w[5] * d
                a6 += w[6] * d
                a7 += w[7] * d
            out = source + 8 * i
            deltas[delta_row, out] = a0
            deltas[delta_row, out + 1] = a1
            deltas[delta_row, out + 2] = a2
            deltas[delta_row, out + 3] = a3
            deltas[delta_row, out + 4] = a4
            deltas[delta_row, out + 5] = a5
            deltas[delta_row, out + 6] = a6
            deltas[delta_row, out + 7] = a7
        if hidden != 0:
            for i in range(layers[layer, N_IN]):
                a = deltas[delta_row, source + i]
                h = units[row, source + i]
                deltas[delta_row, source + i] = a - wp.cw_mul(a, wp.cw_mul(h, h))

    @wp.func
    def lane_accumulate(layers: wp.array2d(dtype=int), layer: int, groups: wp.array2d(dtype=m4), deltas: wp.array2d(dtype=v),
                        delta_groups: wp.array2d(dtype=m4), first: int, first_delta: int, steps: int, worker: int,
                        gradients: wp.array2d(dtype=v)):
        columns = (layers[layer, N_OUT] + 3) // 4 * 4
        for i in range((layers[layer, N_IN] + 3) // 4):
            for j in range(columns // 4):
                a00 = v()
                a01 = v()
                a02 = v()
                a03 = v()
                a10 = v()
                a11 = v()
                a12 = v()
                a13 = v()
                a20 = v()
                a21 = v()
                a22 = v()
                a23 = v()
                a30 = v()
                a31 = v()
                a32 = v()
                a33 = v()
                for s in range(steps):
                    x = groups[first + s, layers[layer, SOURCE] // 4 + i]
                    d = delta_groups[first_delta + s, layers[layer, TARGET] // 4 + j]
                    a00 += wp.cw_mul(x[0], d[0])
                    a01 += wp.cw_mul(x[0], d[1])
                    a02 += wp.cw_mul(x[0], d[2])
                    a03 += wp.cw_mul(x[0], d[3])
                    a10 += wp.cw_mul(x[1], d[0])
                    a11 += wp.cw_mul(x[1], d[1])
                    a12 += wp.cw_mul(x[1], d[2])
                    a13 += wp.cw_mul(x[1], d[3])
                    a20 += wp.cw_mul(x[2], d[0])
                    a21 += wp.cw_mul(x[2], d[1])
                    a22 += wp.cw_mul(x[2], d[2])
                    a23 += wp.cw_mul(x[2], d[3])
                    a30 += wp.cw_mul(x[3], d[0])
                    a31 += wp.cw_mul(x[3], d[1])
                    a32 += wp.cw_mul(x[3], d[2])
                    a33 += wp.cw_mul(x[3], d[3])
                at = layers[layer, GRADIENT] + (4 * i + 0) * columns + 4 * j
                gradients[worker, at] = gradients[worker, at] + a00
                gradients[worker, at + 1] = gradients[worker, at + 1] + a01
                gradients[worker, at + 2] = gradients[worker, at + 2] + a02
                gradients[worker, at + 3] = gradients[worker, at + 3] + a03
                at = layers[layer, GRADIENT] + (4 * i + 1) * columns + 4 * j
                gradients[worker, at] = gradients[worker, at] + a10
                gradients[worker, at + 1] = gradients[worker, at + 1] + a11
                gradients[worker, at + 2] = gradients[worker, at + 2] + a12
                gradients[worker, at + 3] = gradients[worker, at + 3] + a13
                at = layers[layer, GRADIENT] + (4 * i + 2) * columns + 4 * j
                gradients[worker, at] = gradients[worker, at] + a20
                gradients[worker, at + 1] = gradients[worker, at + 1] + a21
                gradients[worker, at + 2] = gradients[worker, at + 2] + a22
                gradients[worker, at + 3] = gradients[worker, at + 3] + a23
                at = layers[layer, GRADIENT] + (4 * i + 3) * columns + 4 * j
                gradients[worker, at] = gradients[worker, at] + a30
                gradients[worker, at + 1] = gradients[worker, at + 1] + a31
                gradients[worker, at + 2] = gradients[worker, at + 2] + a32
                gradients[worker, at + 3] = gradients[worker, at + 3] + a33
        for j in range(layers[layer, N_OUT]):
            a = v()
            for s in range(steps):
                a += deltas[first_delta + s, layers[layer, TARGET] + j]
            at = layers[layer, BIAS_GRADIENT] + j
            gradients[worker, at] = gradients[worker, at] + a

    return Schedule("lanes", worlds, v, w8, m4, 8, 8, 1, 4, lane_forward, lane_reverse, lane_accumulate)


@cache
def units_wide() -> Schedule:
    """Return the schedule with one world a block and a layer's units in the lanes."""
    v, v4 = vector(WIDE), vector(4)
    w4x2 = wp.types.matrix(shape=(8, WIDE), dtype=wp.float32)
    tanh = tanh_of(WIDE)

    @wp.func
    def wide_forward(weights: wp.array(dtype=w4x2), layers: wp.array2d(dtype=int), layer: int, units: wp.array2d(dtype=v),
                     groups: wp.array2d(dtype=v4), row: int):
        quads = (layers[layer, N_IN] + 7) // 8 * 2
        source = layers[layer, SOURCE] // 4
        for j in range((layers[layer, N_OUT] + 31) // 32):
            at = layers[layer, FORWARD] + j * quads
            a0 = v()
            b0 = v()
            a1 = v()
            b1 = v()
            a2 = v()
            b2 = v()
            a3 = v()
            b3 = v()
            for q in range(quads):
                w = weights[at + q]
                x = groups[row, source + q]
                a0 += x[0] * w[0]
                b0 += x[0] * w[1]
                a1 += x[1] * w[2]
                b1 += x[1] * w[3]
                a2 += x[2] * w[4]
                b2 += x[2] * w[5]
                a3 += x[3] * w[6]
                b3 += x[3] * w[7]
            bias = weights[layers[layer, BIAS] + j]
            a0 = (a0 + a1) + (a2 + a3) + bias[0]
            b0 = (b0 + b1) + (b2 + b3) + bias[1]
            if layers[layer, HIDDEN] != 0:
                a0 = tanh(a0)
                b0 = tanh(b0)
            out = layers[layer, TARGET] // 16 + 2 * j
            units[row, out] = a0
            units[row, out + 1] = b0

    @wp.func
    def wide_reverse(weights: wp.array(dtype=w4x2), layers: wp.array2d(dtype=int), layer: int, units: wp.array2d(dtype=v),
                     deltas: wp.array2d(dtype=v), delta_groups: wp.array2d(dtype=v4), row: int, delta_row: int):
        quads = (layers[layer, N_OUT] + 7) // 8 * 2
        target = layers[layer, TARGET] // 4
        for i in range((layers[layer, N_IN] + 31) // 32):
            at = layers[layer, REVERSE] + i * quads
            a0 = v()
            b0 = v()
            a1 = v()
            b1 = v()
            a2 = v()
            b2 = v()
            a3 = v()
            b3 = v()
            for q in range(quads):
                w = weights[at + q]
                d = delta_groups[delta_row, target + q]
                a0 += d[0] * w[0]
                b0 += d[0] * w[1]
                a1 += d[1] * w[2]
                b1 += d[1] * w[3]
                a2 += d[2] * w[4]
                b2 += d[2] * w[5]
                a3 += d[3] * w[6]
                b3 += d[3] * w[7]
            a0 = (a0 + a1) + (a2 + a3)
            b0 = (b0 + b1) + (b2 + b3)
            out = layers[layer, SOURCE] // 16 + 2 * i
            if layers[layer, BEHIND] != 0:
                h = units[row, out]
                a0 = a0 - wp.cw_mul(a0, wp.cw_mul(h, h))
                h = units[row, out + 1]
                b0 = b0 - wp.cw_mul(b0, wp.cw_mul(h, h))
            deltas[delta_row, out] = a0
            deltas[delta_row, out + 1] = b0

    @wp.func
    def wide_accumulate(layers: wp.array2d(dtype=int), layer: int, groups: wp.array2d(dtype=v4), deltas: wp.array2d(dtype=v),
                        delta_groups: wp.array2d(dtype=v4), first: int, first_delta: int, steps: int, worker: int,
                        gradients: wp.array2d(dtype=v)):
        blocks = (layers[layer, N_OUT] + 15) // 16
        for j in range(blocks):
            d_at = layers[layer, TARGET] // 16 + j
            for i in range((layers[layer, N_IN] + 7) // 8):
                a0 = v()
                a1 = v()
                a2 = v()
                a3 = v()
                a4 = v()
                a5 = v()
                a6 = v()
                a7 = v()
                for s in range(steps):
                    d = deltas[first_delta + s, d_at]
                    x = groups[first + s, layers[layer, SOURCE] // 4 + 2 * i]
                    y = groups[first + s, layers[layer, SOURCE] // 4 + 2 * i + 1]
                    a0 += x[0] * d
                    a1 += x[1] * d
                    a2 += x[2] * d
                    a3 += x[3] * d
                    a4 += y[0] * d
                    a5 += y[1] * d
                    a6 += y[2] * d
                    a7 += y[3] * d
                at = layers[layer, GRADIENT] + 8 * i * blocks + j
                gradients[worker, at] = gradients[worker, at] + a0
                gradients[worker, at + blocks] = gradients[worker, at + blocks] + a1
                gradients[worker, at + 2 * blocks] = gradients[worker, at + 2 * blocks] + a2
                gradients[worker, at + 3 * blocks] = gradients[worker, at + 3 * blocks] + a3
                gradients[worker, at + 4 * blocks] = gradients[worker, at + 4 * blocks] + a4
                gradients[worker, at + 5 * blocks] = gradients[worker, at + 5 * blocks] + a5
                gradients[worker, at + 6 * blocks] = gradients[worker, at + 6 * blocks] + a6
                gradients[worker, at + 7 * blocks] = gradients[worker, at + 7 * blocks] + a7
            a = v()
            for s in range(steps):
                a += deltas[first_delta + s, d_at]
            at = layers[layer, BIAS_GRADIENT] + j
            gradients[worker, at] = gradients[worker, at] + a

    return Schedule("units", 1, v, w4x2, v4, 32, 128, WIDE, 8, wide_forward, wide_reverse, wide_accumulate)


class Network(NamedTuple):
    """One or more perceptrons laid out for a schedule; all index arrays are int32."""

    layers: np.ndarray
    """Layer table, shape [layers, columns]."""
    inputs: np.ndarray
    """Slot of each input, shape [inputs]."""
    outputs: np.ndarray
    """Slot of each output, shape [outputs]."""
    squashed: np.ndarray
    """Whether a tanh follows each output, shape [outputs]."""
    slots: int
    """Slots of a row."""
    packing: np.ndarray
    """For every entry of the packed weights the entry of the flat ones, -1 for padding."""
    gathering: np.ndarray
    """For every flat weight the entry of the gradient array, in its last axis' order."""
    gradients: int
    """Vectors of a gradient array."""


def lay_out(networks: Sequence[Sequence[int]], schedule: Schedule, squashed: Sequence[bool] = ()) -> Network:
    """Lay networks out for a schedule.

    Flat weights are, network by network and layer by layer, the matrix [inputs, outputs] by rows and then the bias. Inputs and
    outputs of all networks follow each other in the order of the networks.

    Args:
        networks: Sizes of each network, inputs first: (5, 64, 64, 2).
        schedule: How units lie in registers.
        squashed: For each network whether a tanh follows its outputs too; none does where missing.
    """
    wide, pad, row, unit = schedule.name == "units", schedule.pad, min(schedule.per_weight, schedule.pad), schedule.per_weight
    table, inputs, outputs, packing, gathering = [], [], [], [], []
    slot = flat = packed = gradient = 0
    squashed = tuple(squashed) or (False,) * len(networks)
    for sizes, squash in zip(networks, squashed, strict=True):
        starts = []
        for size in sizes:
            starts.append(slot)
            slot += -(-size // pad) * pad
        inputs += range(starts[0], starts[0] + sizes[0])
        outputs += range(starts[-1], starts[-1] + sizes[-1])
        for k, (n, m) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
            index = flat + np.arange(n * m).reshape(n, m)
            bias = flat + n * m + np.arange(m)
            flat += n * m + m
            n8, m8 = -(-n // 8) * 8, -(-m // 8) * 8
            groups_m, groups_n = -(-m // pad) * pad, -(-n // pad) * pad
            forward = _packed(index, n8 if wide else n, groups_m, row)
            reverse = _packed(index.T, m8 if wide else m, groups_n, row)
            places = [packed, packed + forward.size // unit]
            bias = np.concatenate([bias, np.full(groups_m - m, -1)])
            if wide:  # an entry for each 32 outputs, of which it fills a quarter
                bias = np.pad(bias.reshape(-1, pad), ((0, 0), (0, unit - pad)), constant_values=-1).ravel()
            places.append(places[1] + bias.size // unit)
            packed = places[2] + reverse.size // unit
            packing += [forward, bias, reverse]
            columns = -(-m // 16) if wide else -(-m // 4) * 4
            bias_gradient = gradient + -(-n // schedule.inputs) * schedule.inputs * columns
            table.append([n, m, starts[k], starts[k + 1], places[0], places[1], places[2], gradient, bias_gradient,
                          int(squash or k < len(sizes) - 2), int(k > 0)])
            i, j = np.meshgrid(np.arange(n), np.arange(m), indexing="ij")
            if wide:
                gathering += [((gradient + i * columns + j // 16) * 16 + j % 16).ravel(), bias_gradient * 16 + np.arange(m)]
            else:
                gathering += [(gradient + i * columns + j).ravel(), bias_gradient + np.arange(m)]
            gradient = bias_gradient + columns
    return Network(np.array(table, np.int32), np.array(inputs, np.int32), np.array(outputs, np.int32),
                   np.repeat(np.array(squashed, np.int32), [sizes[-1] for sizes in networks]), slot,
                   np.concatenate(packing).astype(np.int32), np.concatenate(gathering).astype(np.int32), gradient)


def _packed(index: np.ndarray, n: int, m: int, row: int) -> np.ndarray:
    """Order the entries of a matrix [inputs, outputs] as [outputs / row, inputs, row], padded with -1 to n inputs, m outputs."""
    padded = np.full((n, m), -1)
    padded[: index.shape[0], : index.shape[1]] = index
    return padded.reshape(n, m // row, row).transpose(1, 0, 2).ravel()
