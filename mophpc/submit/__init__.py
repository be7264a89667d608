"""Runs on a cluster: the script that Slurm takes, the manifest that Kubernetes takes."""
