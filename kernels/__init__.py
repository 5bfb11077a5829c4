"""How rollouts run fast: Warp building blocks that import nothing else of the package. The torch backend needs none."""
