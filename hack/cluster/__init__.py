"""A real Kubernetes cluster for the tests, also on machines without Docker and without an image registry: see README.md."""
