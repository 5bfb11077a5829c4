"""Recorded data sets, one reader a file format, each with the split and the metric it is scored by."""
