"""What is measured of a model: the table of metrics, distances of samples, rulers to compare with, and how a result is said."""
