"""The evaluation protocol: every ablation, amount of data, seed and option as a cell of one table, run apart and reported together."""
