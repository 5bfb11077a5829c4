"""Rollouts, costs and linearisations of a model in one kernel launch, where every part of the model has a Warp form."""
