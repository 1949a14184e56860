"""The parts of examples/train.py: data, networks and their recipes, checkpoints, metrics, processes, the loop."""
