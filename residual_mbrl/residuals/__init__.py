"""Learned corrections, one kind a file, each on one port and with a certificate."""

from residual_mbrl.residuals.actuator import CommandActuator, EffortActuator
from residual_mbrl.residuals.base import Certificate, Context, Residual
from residual_mbrl.residuals.conservative import Conservative
from residual_mbrl.residuals.contact_force import ContactForce
from residual_mbrl.residuals.contact_parameters import ContactParameters
from residual_mbrl.residuals.dissipative import Dissipative
from residual_mbrl.residuals.dry_friction import DryFriction
from residual_mbrl.residuals.features import Feature
from residual_mbrl.residuals.held_force import HeldForce
from residual_mbrl.residuals.joint_springs import JointSprings
from residual_mbrl.residuals.memory import MemoryForce, MemoryRate
from residual_mbrl.residuals.unstructured import StateDelta, Unstructured

__all__ = ["Certificate", "CommandActuator", "Conservative", "ContactForce", "ContactParameters", "Context", "Dissipative", "DryFriction",
           "EffortActuator", "Feature", "HeldForce", "JointSprings", "MemoryForce", "MemoryRate", "Residual", "StateDelta", "Unstructured"]
