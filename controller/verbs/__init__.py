"""The command line against a cluster: `kubectl policymodel VERB`. The operator knows nothing of it but the flags."""
