"""Physics-informed residual dynamics: a known model, corrected by learned residuals that cannot break physics."""
