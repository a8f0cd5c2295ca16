"""A real Kubernetes cluster, also on machines without Docker and without an image registry: see README.md."""
