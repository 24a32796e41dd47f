"""Running a function on several real processes, from a script, a notebook cell, or under torchrun.

Read ``launcher`` first (`run_distributed`), then ``pool`` (processes started ahead, each serving one call),
``worker`` (what a rank does), ``sending`` (functions of notebook cells, with their lines), ``watch`` (waiting for
ranks, and noticing that they wait for each other), ``blame`` (who is at fault, and where the others were),
``console`` (output and progress) and ``in_place`` (under torchrun).
"""
