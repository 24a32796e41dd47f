"""The memory of a training step as it runs.

Read ``records`` and ``storages`` first (what is written down), then ``timeline`` (watching) with ``classify``,
``saved``, ``origin`` and ``stand_in``; ``results`` and ``timeline_text`` (asking) and ``snapshot`` (PyTorch's own
format). ``real_step`` and ``comparison`` hold a measured step against its ledger.
"""
