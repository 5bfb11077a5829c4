"""What is known of a plant: one system a file. Imports nothing of the package but spaces, baselines and errors."""
