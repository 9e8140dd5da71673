"""What this package may cost, as ratios within one run: ``make bench``."""
