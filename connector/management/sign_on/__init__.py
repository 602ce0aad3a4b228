"""Sign-on: people, personal access tokens and workloads, and the check of each caller of the management API."""
