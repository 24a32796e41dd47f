"""The exercise on decoding: temperature and top-k, top-p, beam search, and the acceptance rule of speculative decoding.

Read `truncation` (right and wrong ways from logits to probabilities, which two parts share), then `top_k`, `top_p`,
`beams` and `speculation`, a module per part.
"""

from cme295lab.grading.decoding import beams, speculation, top_k, top_p
from cme295lab.grading.decoding.hints import HINTS
from cme295lab.grading.exercise import Exercise

_ALL = (
    Exercise(
        id="decoding/1",
        title="Sharper, and fewer",
        hints=HINTS["decoding/1"],
        check=top_k.properties,
        refuse=top_k.refuse,
    ),
    Exercise(
        id="decoding/2",
        title="As many as it takes",
        hints=HINTS["decoding/2"],
        check=top_p.properties,
        refuse=top_p.refuse,
    ),
    Exercise(
        id="decoding/3",
        title="Several answers side by side",
        hints=HINTS["decoding/3"],
        check=beams.properties,
        refuse=beams.refuse,
    ),
    Exercise(
        id="decoding/4",
        title="Propose, and check",
        hints=HINTS["decoding/4"],
        check=speculation.properties,
        refuse=speculation.refuse,
    ),
)
EXERCISES = {exercise.id: exercise for exercise in _ALL}
