"""What the README claims about speed, as ratios within one run: ``make bench``."""
