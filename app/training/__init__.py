"""What a training Job runs: RLlib, its settings, checkpoints, search and export. Never imported by what serves."""
