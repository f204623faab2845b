"""What is shown of a trained model: drawn samples, completions, and the report at the end of a run."""
