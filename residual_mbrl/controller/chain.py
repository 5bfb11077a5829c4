"""Which law is in use: the first of a chain that is trusted, with a dwell time before a lost one is used again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from residual_mbrl.controller.log import Evidence, Switch, SwitchLog

TRUSTED, SEEN, IN_TIME = "trusted again", "observation again", "plan in time again"
SOUND = frozenset({TRUSTED, SEEN, IN_TIME})
"""Reasons of switches back to what is better."""


@dataclass(frozen=True)
class Doubt:
    """Why a law is not to be used now."""

    reason: str
    evidence: Evidence = field(default_factory=dict)


class Chain:
    """Goes down a chain of laws while those above are doubted, and up again once they have not been for a while.

    Args:
        names: Of the laws, the best first; the last one is always used where nothing else can be.
        dwell: Seconds without doubt after which a law is used again.
        log: Where switches are entered.
    """

    def __init__(self, names: Sequence[str], dwell: float, log: SwitchLog) -> None:
        self.names, self.dwell, self._log = tuple(names), dwell, log
        self.current = 0
        self._free = [-float("inf")] * len(names)
        self._doubts: list[Doubt | None] = [None] * len(names)

    def doubt(self, law: int, time: float, doubt: Doubt, dwell: float | None = None) -> None:
        """Keep a law from being used until ``dwell`` seconds from now, those of the chain where None."""
        self._free[law] = max(self._free[law], time + (self.dwell if dwell is None else dwell))
        self._doubts[law] = doubt

    def trusts(self, law: int, time: float) -> bool:
        """Tell whether a law may be used."""
        return time > self._free[law] or law == len(self.names) - 1

    def choose(self, time: float) -> int:
        """Return the law to use now, a switch to it entered in the log."""
        chosen = next(i for i in range(len(self.names)) if self.trusts(i, time))
        if chosen != self.current:
            self._switch(chosen, time)
        return chosen

    def _switch(self, chosen: int, time: float) -> None:
        left = self._doubts[self.current]
        if chosen > self.current and left is not None:
            reason, evidence = left.reason, dict(left.evidence)
            for between in range(self.current + 1, chosen):
                doubt = self._doubts[between]
                if doubt is not None:
                    evidence[f"{self.names[between]}"] = doubt.reason
        else:
            was = self._doubts[chosen]
            reason, evidence = TRUSTED, {"had been": "" if was is None else was.reason}
        self._log.add(Switch(time=time, subject="law", source=self.names[self.current], target=self.names[chosen], reason=reason,
                             evidence=evidence))
        self.current = chosen
