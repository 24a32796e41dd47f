"""The memory of a training step on paper.

Read ``precision`` and ``setting`` first (what decides), then ``shapes`` and ``model_states`` (weights, gradients,
masters, optimizer states, sharded or not), ``activations`` (what autograd keeps, operator by operator),
``korthikanti`` (the published formulas), ``moments`` (when it peaks), ``ledger`` with ``ledger_view`` (all of it,
line by line) and ``fit`` (what fits a GPU).
"""
