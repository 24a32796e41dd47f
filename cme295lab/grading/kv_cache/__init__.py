"""The exercise on the KV cache: its bytes, attention that continues it, and a loop that reads each token once.

Read `sizes`, `attending` and `generating`, a module per part.
"""

from cme295lab.grading.exercise import Exercise
from cme295lab.grading.kv_cache import attending, generating, sizes
from cme295lab.grading.kv_cache.hints import HINTS

_ALL = (
    Exercise(
        id="kv_cache/1",
        title="What a token leaves behind",
        hints=HINTS["kv_cache/1"],
        check=sizes.properties,
        refuse=sizes.refuse,
    ),
    Exercise(
        id="kv_cache/2",
        title="Attention that goes on",
        hints=HINTS["kv_cache/2"],
        check=attending.properties,
        refuse=attending.refuse,
    ),
    Exercise(
        id="kv_cache/3",
        title="Read each token once",
        hints=HINTS["kv_cache/3"],
        check=generating.properties,
        refuse=generating.refuse,
    ),
)
EXERCISES = {exercise.id: exercise for exercise in _ALL}
