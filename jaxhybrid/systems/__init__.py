"""Whole algorithms: ``Config``, ``State``, ``make(config, env) -> System(init, step, act)``."""
