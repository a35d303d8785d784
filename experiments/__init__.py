"""One file per study; ``python -m experiments`` lists them."""
