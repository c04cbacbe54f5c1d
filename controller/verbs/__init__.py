"""The command line against a cluster: `kubectl policymodel VERB`. Decides what is said and written; the operator imports none of it."""
