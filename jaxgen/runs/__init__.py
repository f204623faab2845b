"""What a run leaves on disk: its directory and lock, checkpoints and their manifests, metric files and pictures."""
