"""ZeRO: states, gradients and weights spread over the ranks, stage by stage.

Read ``partition`` first (who has which piece), then ``sharded_optimizer`` (torch's optimizers on pieces; behind it
``elementwise``, ``parameter_groups`` and ``gradient_health``) and ``zero``, the entrance. Stages 1 and 2 are
``zero1`` and ``zero2`` on ``zero_replicated`` and ``flat_weights``; stage 3 is ``zero3`` on ``sharded_parameters``,
``sharded_unit`` and ``unit_schedule``, with its optimizer in ``zero3_optimizer``.
"""
