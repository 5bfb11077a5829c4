"""A network policy as one file that other programs run: ONNX, or torch.export's own format."""

from __future__ import annotations

import io
import logging
import tempfile
import warnings
from pathlib import Path

import torch

from residual_mbrl import files
from residual_mbrl.policies.networks import NetworkPolicy

SUFFIXES = (".onnx", ".pt2")


def export_policy(path: Path, policy: NetworkPolicy) -> None:
    """Write a policy as a graph with its weights, in its own precision, for any number of states at once; whole or not at all.

    Inputs are ``state`` [batch, nx], ``noise`` [batch, noise_size] if the policy has noise (zeros give its mean) and ``goal``
    [batch, goal_size] if it has a goal; the only output is ``action`` [batch, nu].

    Args:
        path: ``*.onnx`` (needs ``pip install residual-mbrl[export]``), or ``*.pt2``, which ``torch.export.load`` reads.
        policy: The policy.

    Raises:
        ValueError: if the name ends in anything else, or the policy is a planner.
        ImportError: if what writes ONNX is not installed.
        OutputError: if it cannot be written.
    """
    if not isinstance(policy, NetworkPolicy):
        raise ValueError(f"export_policy: expected a network policy, received {type(policy).__name__}; distil makes one of a planner")
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"export_policy: {path}: expected a name that ends in one of {SUFFIXES}")
    inputs = {"state": policy.space.nx, "noise": policy.noise_size, "goal": policy.goal_size}
    dtype = policy.network.weights[0].dtype
    examples = {n: torch.zeros(2, size, dtype=dtype) for n, size in inputs.items() if size}
    batch = torch.export.Dim("batch")
    made = torch.export.export(policy, (), examples, dynamic_shapes={n: {0: batch} for n in examples})
    files.write_bytes(path, _onnx(made, list(examples)) if path.suffix == ".onnx" else _pt2(made))


def _pt2(made: torch.export.ExportedProgram) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(made, buffer)
    return buffer.getvalue()


def _onnx(made: torch.export.ExportedProgram, names: list[str]) -> bytes:
    try:
        import onnxscript  # noqa: F401, PLC0415  # an optional dependency
    except ImportError as error:
        raise ImportError("export_policy: ONNX is written by onnx and onnxscript: pip install residual-mbrl[export]") from error
    quiet = logging.getLogger("torch.onnx")
    before = quiet.level
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")  # of how torch reads its own tree of inputs
        quiet.setLevel(logging.ERROR)  # it says which operators of torchvision it does without
        try:
            program = torch.onnx.export(made, input_names=names, output_names=["action"], dynamo=True, verbose=False)
        finally:
            quiet.setLevel(before)
        if program is None:
            raise RuntimeError("export_policy: torch.onnx.export gave nothing")
        program.save(Path(folder) / "policy.onnx", external_data=False)
        return (Path(folder) / "policy.onnx").read_bytes()
