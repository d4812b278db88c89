"""Systems to compare with; first of all the floors, which need no training."""
