"""The three methods of Hoffmann et al., to run on anybody's runs.

Read in this order: ``power_law`` (a straight line through logarithms), ``isoflop`` (approach 2: parabolas at equal
compute), ``envelope`` (approach 1: the lowest of many training curves), ``objective``, ``solver`` and
``parametric_fit`` (approach 3: the loss as a formula, fitted until the optimum).
"""
