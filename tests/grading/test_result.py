"""What a check returns: kinds, scores, text, HTML, points; hints and the entrance."""

import contextlib
import json
import subprocess
import sys

import pytest
import torch

from cme295lab.grading import CheckResult, Kind, Outcome, checks
from cme295lab.grading.compare import Hypothesis, allowed_error, diagnose, largest_difference
from cme295lab.grading.observe import observe_call


def result(*outcomes: Outcome) -> CheckResult:
    return CheckResult("topic/1", "A title", outcomes)


GOOD = Outcome(name="it is right", weight=3)
BAD = Outcome(
    name="it is small",
    kind=Kind.TOO_MUCH_MEMORY,
    where="x of shape (3,), seed 7",
    difference="expected 1, got <b>2</b>",
    cause="a copy",
)


def test_message_says_property_input_difference_cause_and_hint_in_this_order() -> None:
    message = result(GOOD, BAD).message
    parts = ["too much memory", "it is small", "seed 7", "expected 1", "a copy", 'checks.hint("topic/1")']
    places = [message.index(part) for part in parts]
    assert places == sorted(places)


def test_score_is_the_weighted_share_of_properties() -> None:
    assert result(GOOD, BAD).score == 0.75
    assert result(GOOD).score == 1.0
    assert result().score == 0.0
    assert not result().passed


def test_score_is_zero_when_something_forbidden_was_used() -> None:
    assert result(GOOD, Outcome(name="own work", kind=Kind.NOT_ALLOWED)).score == 0.0


def test_kind_is_that_of_the_first_failure_that_says_something() -> None:
    unjudged = Outcome(name="later", kind=Kind.NOT_JUDGED)
    assert result(unjudged, GOOD, BAD).kind is Kind.TOO_MUCH_MEMORY


def test_both_results_must_hold() -> None:
    bad = Outcome(name="it is right", kind=Kind.WRONG_VALUE, weight=1)
    both = result(GOOD) & result(bad)
    assert both.kind is Kind.WRONG_VALUE
    assert both.outcomes[0].weight == 3
    assert (result(bad) & result(GOOD)).kind is Kind.WRONG_VALUE
    assert (result(GOOD) & result(GOOD)).passed
    assert len((result(GOOD) & result(BAD)).outcomes) == 2
    with pytest.raises(ValueError, match="cannot combine"):
        result(GOOD) & CheckResult("topic/2", "Another", ())


@pytest.mark.parametrize(("points", "expected"), [(2, 1.5), (3, 2.25), (1, 0.75), (0, 0.0)])
def test_award_shows_the_verdict_and_returns_points(points: float, expected: float, capsys) -> None:
    assert result(GOOD, BAD).award(points) == expected
    assert "it is small" in capsys.readouterr().out


def test_award_never_exceeds_the_points() -> None:
    thirds = result(*(Outcome(name=str(i)) for i in range(3)))
    assert thirds.award(0.7) == 0.7
    assert result(GOOD, Outcome(name="x", kind=Kind.CRASHED, weight=0.001)).award(2) < 2


def test_html_is_escaped_and_names_the_kind_in_words() -> None:
    html = result(GOOD, BAD)._repr_html_()
    assert "<b>2</b>" not in html
    assert "&lt;b&gt;2&lt;/b&gt;" in html
    assert "too much memory" in html
    assert "✗" in html
    assert "✓" in html


def test_result_is_plain_data() -> None:
    data = json.loads(json.dumps(result(GOOD, BAD).as_dict()))
    assert data["score"] == 0.75
    assert data["outcomes"][1]["kind"] == "too much memory"


def test_hints_go_from_a_nudge_to_more() -> None:
    for exercise in checks.exercises():
        first = checks.hint(exercise)
        assert first.level == 1
        assert f'checks.hint("{exercise}", 2)' in str(first)
        last = checks.hint(exercise, first.num_levels)
        assert "More" not in str(last)
        assert exercise in last._repr_html_()
        with pytest.raises(ValueError, match="has hints 1 to"):
            checks.hint(exercise, first.num_levels + 1)


def test_unknown_exercise_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean"):
        checks.run("flash_atention/1", None)
    with pytest.raises(ValueError, match="flash_attention/4"):
        checks.hint("x")


def test_import_of_the_checks_is_light() -> None:
    code = "import sys; from cme295lab.grading import checks; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_largest_difference_finds_place_and_share() -> None:
    got = torch.tensor([[1.0, 2.0], [3.0, 4.5]])
    difference = largest_difference("o", got, torch.tensor([[1.0, 2.0], [3.0, 4.0]]), 0.1)
    assert difference.index == (1, 1)
    assert difference.share == 0.25
    assert "o[1, 1]" in str(difference)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_largest_difference_takes_nan_and_inf_for_wrong(bad: float) -> None:
    difference = largest_difference("o", torch.tensor([0.0, bad]), torch.zeros(2), 1e9)
    assert difference.exceeds
    assert difference.index == (1,)


def test_diagnosis_does_not_guess() -> None:
    expected, got = torch.zeros(100), torch.linspace(1, 2, 100)
    assert diagnose(got, expected, [Hypothesis("wrong", lambda: torch.ones(100) * 7)], 1e-6) == ""
    assert diagnose(got, expected, [Hypothesis("right", lambda: torch.linspace(1, 2, 100))], 1e-6) == "right"


def test_diagnosis_needs_the_places_that_a_mistake_changes() -> None:
    """One value is off, and not the one that the mistake would change."""
    expected = torch.zeros(1000)
    got, mistaken = expected.clone(), expected.clone()
    got[0], mistaken[1] = 1.0, 1.0
    assert diagnose(got, expected, [Hypothesis("another place", lambda: mistaken)], 1e-6) == ""


def test_tolerance_needs_a_floating_dtype() -> None:
    assert allowed_error(torch.float16, 1.0) > allowed_error(torch.float32, 1.0) > allowed_error(torch.float64, 1.0)
    with pytest.raises(ValueError, match="int64"):
        allowed_error(torch.int64, 1.0)


def test_observation_counts_memory_that_lives_at_the_same_time() -> None:
    def one_at_a_time(x):
        for _ in range(10):
            y = x + 1
            del y
        return x

    def all_at_once(x):
        return sum([x + i for i in range(10)])

    x = torch.zeros(1000)
    lean = observe_call(one_at_a_time, {"x": x})
    fat = observe_call(all_at_once, {"x": x})
    assert lean.peak_bytes == 4000
    assert fat.peak_bytes >= 40_000
    assert lean.largest is not None
    assert lean.largest.shape == (1000,)


def test_observation_keeps_warnings_and_stderr_out_of_a_graded_cell(capsys) -> None:
    def noisy(x):
        import warnings

        warnings.warn("careful", stacklevel=1)
        print("debugging", file=sys.stderr)
        return x

    observe_call(noisy, {"x": torch.zeros(1)})
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "debugging" in captured.out


def test_time_limit_stops_code_that_swallows_exceptions() -> None:
    def stubborn():
        while True:
            with contextlib.suppress(Exception):
                sum(range(1000))

    seen = observe_call(stubborn, {}, time_limit_s=0.2)
    assert seen.error is not None
    assert seen.error.kind is Kind.TIMED_OUT


def test_time_limit_stops_code_that_waits() -> None:
    import time

    seen = observe_call(lambda: time.sleep(60), {}, time_limit_s=0.05)
    assert seen.error is not None
    assert seen.error.kind is Kind.TIMED_OUT


def test_not_implemented_operators_of_torch_are_crashes() -> None:
    def student(x):
        raise_from_library(x)

    def raise_from_library(x):
        torch.ops.aten.no_such_operator(x)

    seen = observe_call(student, {"x": torch.zeros(1)})
    assert seen.error is not None
    assert seen.error.kind is Kind.CRASHED
