"""Parts of the studies of GMAS."""
