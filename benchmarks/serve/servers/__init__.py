"""What is measured: one program a server. Those of other frameworks run in environments that hold nothing of this repository."""
