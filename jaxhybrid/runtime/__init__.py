"""The host side of a run: the loop over compiled iterations, checkpoints, records, plots and the command line."""
