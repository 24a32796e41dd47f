"""Checkpoints of sharded training that any number of ranks, and the plain model, can go on with.

Read ``checkpoint`` first, then ``checkpoint_pieces`` (parameters as pieces) and ``checkpoint_files`` (whole or not at
all).
"""
