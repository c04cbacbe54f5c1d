"""What a replica runs: routes, bodies, policies beside each other, and what is told of them. Imports neither torch nor RLlib."""
