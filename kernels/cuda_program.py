"""A repeated call on a CUDA device as one replay of a captured graph.

A graph holds addresses, and a call's tensors lie elsewhere each time. So the kernels take one fixed address, that of a table in
device memory, and a call copies its own addresses there (one small asynchronous copy from pinned memory) before the replay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import warp as wp
from torch import Tensor

from residual_mbrl.kernels.cuda import FIELDS, PLACES, ThreadKernel
from residual_mbrl.kernels.cuda_tiles import TileKernel


class Program:
    """Launches and matrix products that follow each other, and the table that tells them where everything is."""

    def __init__(self, device: torch.device, rows: Sequence[dict[str, int]]) -> None:
        self.device = device
        self._template = np.array([[row.get(n, 0) for n in FIELDS] for row in rows], np.int64)
        self.table = torch.zeros(self._template.shape, dtype=torch.int64, device=device)
        self.issue: list[Callable[[], None]] = []
        self._runs, self._graph = 0, None

    def launch(self, kernel: ThreadKernel, row: int, threads: int, lanes: int) -> None:
        """Add a kernel with a row of the table."""
        self.issue.append(lambda: kernel.launch(self._row(row), threads, lanes, str(self.device), self._stream()))

    def launch_tiles(self, kernel: TileKernel, inputs: Sequence[Tensor | int], groups: int) -> None:
        """Add a kernel of tiles with the first row of the table and what follows it."""
        arrays = [wp.from_torch(x) if isinstance(x, Tensor) else x for x in inputs]
        self.issue.append(lambda: kernel.launch([self._row(0), *arrays], groups, str(self.device), self._stream()))

    def _row(self, row: int) -> int:
        return self.table.data_ptr() + row * self.table.stride(0) * self.table.element_size()

    def _stream(self) -> wp.Stream | None:
        return wp.stream_from_torch(torch.cuda.current_stream(self.device)) if self.device.type == "cuda" else None

    def run(self, **addresses: int) -> None:
        """Run with these entries in every row: at once the first time, which loads modules, then captured, then replayed.

        An entry of zero is left as it is laid out.
        """
        values = self._template.copy()
        for name, value in addresses.items():
            if value:
                values[:, PLACES[name]] = value
        if self.device.type == "cpu":
            self.table.copy_(torch.from_numpy(values))
            self._issue_all()
            return
        # the pinned block is torch's, which lends it again only when the copy is over
        host = torch.empty(values.shape, dtype=torch.int64, pin_memory=True)
        host.numpy()[:] = values
        with torch.cuda.device(self.device):
            self.table.copy_(host, non_blocking=True)
            if self._runs == 0:
                self._issue_all()
            else:
                if self._graph is None:
                    graph = torch.cuda.CUDAGraph()
                    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                        self._issue_all()
                    self._graph = graph
                self._graph.replay()
        self._runs += 1

    @property
    def captured(self) -> bool:
        """Whether the next call is a replay."""
        return self._graph is not None

    def _issue_all(self) -> None:
        for issue in self.issue:
            issue()
