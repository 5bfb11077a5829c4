"""Policies: actions from states, trained through a model and shipped as numpy."""

from residual_mbrl.policies.base import Policy
from residual_mbrl.policies.export import export_policy
from residual_mbrl.policies.heads import angles_turned
from residual_mbrl.policies.networks import GaussianPolicy, LinearPolicy, MLPPolicy, NetworkPolicy
from residual_mbrl.policies.numpy_form import NumpyPolicy
from residual_mbrl.policies.planned import PlannedPolicy
from residual_mbrl.policies.storage import load_policy, save_policy
from residual_mbrl.policies.value import Value

__all__ = ["GaussianPolicy", "LinearPolicy", "MLPPolicy", "NetworkPolicy", "NumpyPolicy", "PlannedPolicy", "Policy", "Value",
           "angles_turned", "export_policy", "load_policy", "save_policy"]
