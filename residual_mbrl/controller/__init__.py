"""A loop that always answers in time, inside the limits, and can say why it chose what it did."""

from residual_mbrl.controller.chain import Chain, Doubt
from residual_mbrl.controller.controller import Controller, Tick
from residual_mbrl.controller.hold import Hold
from residual_mbrl.controller.interval import Interval, calibrate_interval
from residual_mbrl.controller.law import Law
from residual_mbrl.controller.level import Level
from residual_mbrl.controller.log import Switch, SwitchLog
from residual_mbrl.controller.lqr import LQR
from residual_mbrl.controller.trust import TrustOptions
from residual_mbrl.controller.watch import WatchOptions
from residual_mbrl.controller.worker import Background, Inline, Worker

__all__ = ["LQR", "Background", "Chain", "Controller", "Doubt", "Hold", "Inline", "Interval", "Law", "Level", "Switch", "SwitchLog", "Tick",
           "TrustOptions", "WatchOptions", "Worker", "calibrate_interval"]
