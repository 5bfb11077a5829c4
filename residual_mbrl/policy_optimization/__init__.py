"""Policies trained through a model."""
