"""The parts of the benchmarks of MSCV; `benchmarks.trpo` and `benchmarks.mscv_variance` are their front doors."""
