"""Data parallelism: every rank has the whole model, and the mean of all ranks' gradients.

Read ``data_parallel`` first, then ``buckets`` and ``backward_watch`` (gradients that are sent while backward runs;
ZeRO uses both, too), ``weighting`` (batches of unequal length) and ``replicas`` (models that must be the same on all
ranks).
"""
