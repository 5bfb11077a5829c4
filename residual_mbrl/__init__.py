"""Physics-informed residual dynamics: a known model, corrected by learned residuals that cannot break physics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from residual_mbrl.audit import gradient_audit

__all__ = ["gradient_audit"]


def __getattr__(name: str) -> Any:
    """Import what is offered here where it is first used, so that importing the package alone stays cheap."""
    if name != "gradient_audit":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from residual_mbrl.audit import gradient_audit  # noqa: PLC0415

    return gradient_audit
