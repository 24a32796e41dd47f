"""Pictures of training runs: what they say in words is what they were given."""

import re

import pytest

from cme295lab.widgets import few_labels_figure, loss_curves, memorisation_figure


def test_loss_curves_name_their_ends_and_draw_every_point() -> None:
    picture = loss_curves({"code": [(0, 8.3), (10, 4.5), (20, 3.25)], "english": [(0, 8.31), (20, 5.0)]})
    assert "code from 8.30 to 3.25; english from 8.31 to 5.00" in picture.alt_text
    (axes,) = picture.axes
    assert [list(line.get_xdata()) for line in axes.lines] == [[0, 10, 20], [0, 20]]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["code: 3.25", "english: 5.00"]
    assert len(picture.png()) < 100_000


def test_few_labels_have_means_and_standard_errors_by_hand() -> None:
    picture = few_labels_figure({"tuned": {16: [0.7, 0.8, 0.9], 64: [0.9, 0.9, 0.9]}}, chance=0.5, title="spam")
    assert "tuned: 80% of 16, 90% of 64" in picture.alt_text
    assert "Chance is 50%" in picture.alt_text
    (axes,) = picture.axes
    (container,) = axes.containers
    low, high = container.lines[2][0].get_segments()[0][:, 1]
    assert high - low == pytest.approx(2 * 0.1 / 3**0.5)


def test_memorisation_shows_each_canary_and_the_most_that_is_possible() -> None:
    picture = memorisation_figure({1: [0.5, 1.5], 16: [9.0, 10.0]}, most_bits=10)
    assert "1.0 bits after 1, 9.5 bits after 16" in picture.alt_text
    (axes,) = picture.axes
    assert sorted(y for line in axes.lines[:2] for y in line.get_ydata()) == [0.5, 1.5, 9.0, 10.0]
    assert axes.get_ylim()[1] == pytest.approx(12)


def test_pictures_without_data_are_refused() -> None:
    for draw in (
        lambda: loss_curves({}),
        lambda: loss_curves({"code": []}),
        lambda: few_labels_figure({"tuned": {}}, chance=0.5, title="spam"),
        lambda: memorisation_figure({1: []}, most_bits=3),
    ):
        with pytest.raises(ValueError, match=re.compile("must not be empty")):
            draw()
