"""Whole algorithms: ``Config``, ``State``, ``make(config, env) -> System(init, step, act)``.

``setting(config, name) -> Setting`` says what a run in the environment of a name is made of.
"""
