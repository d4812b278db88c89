"""Many trainings on the same users: comparisons and the experiments of the paper."""
