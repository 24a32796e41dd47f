"""The exercises on ZeRO: shards, an optimizer with sharded states, and a layer with a sharded weight.

Read `shards` (no processes), `states` (stage 1) and `layers` (stage 3), a module per part.
"""

from cme295lab.grading.exercise import Exercise
from cme295lab.grading.zero_sharding import layers, shards, states
from cme295lab.grading.zero_sharding.hints import HINTS

_ALL = (
    Exercise(
        id="zero_sharding/1",
        title="Equal shards",
        hints=HINTS["zero_sharding/1"],
        check=shards.properties,
        refuse=shards.refuse,
    ),
    Exercise(
        id="zero_sharding/2",
        title="An optimizer that remembers its shard",
        hints=HINTS["zero_sharding/2"],
        check=states.properties,
        refuse=states.refuse,
    ),
    Exercise(
        id="zero_sharding/3",
        title="Weights that come and go",
        hints=HINTS["zero_sharding/3"],
        check=layers.properties,
        refuse=layers.refuse,
    ),
)
EXERCISES = {exercise.id: exercise for exercise in _ALL}
