"""What ranks send each other: written out, counted, checked, timed.

Read ``schedules`` and ``collectives`` first (rings and trees, as lists and as sends and receives), then
``comm_ledger`` (bytes of any torch.distributed code; behind it ``calls`` and ``c10d_operators``), ``consistency`` (do
all ranks make the same call?), ``cost_model`` and ``step_time`` (how long over which link). ``transport``, with
``exchange`` and ``tensor_checks``, is what the rest of the room calls: the one seam to torch.distributed.
"""
