"""What sweeps are made of: grids, calls at their points, journals that survive a kill, labelled data sets.

Nothing here knows the engines: `scalefield.sweeps` is the interface, and `scaling.learning_curves` uses the same parts.
"""
