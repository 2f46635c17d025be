"""The panels of the tuner's picture: what their axes say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from selfspec.benchmarking.render import new_figure
from selfspec.tuning import plots
from selfspec.tuning.calibration import held_out_reliability
from selfspec.tuning.recording import Recording, joined
from selfspec.tuning.replay import Setting


def panel(draw: Any, tuned: Any) -> Any:
    """The axes of one panel."""
    axes = new_figure(5.0, 4.0).subplots()
    draw(axes, tuned)
    return axes


def choosing(result: Any, setting: Setting) -> Any:
    """The same result, had the tuner chosen this."""
    return replace(result, profile=replace(result.profile, setting=setting))


def longer(result: Any) -> Recording:
    """Its recording several times over, so that more than one draft position can be calibrated."""
    return joined([result.recording] * 8)


def starred(axes: Any) -> list[tuple[float, float]]:
    """Where the chosen point is marked."""
    stars = [line for line in axes.lines if line.get_marker() == "*"]
    return [(float(star.get_xdata()[0]), float(star.get_ydata()[0])) for star in stars]


def ticks(axes: Any) -> list[list[str]]:
    """The labels along both axes."""
    return [[tick.get_text() for tick in own] for own in (axes.get_xticklabels(), axes.get_yticklabels())]


def test_reliability_is_that_of_the_running_product_stated_and_calibrated(tuned: Any) -> None:
    result = choosing(replace(tuned[1], recording=longer(tuned[1])), Setting(3, 2))
    axes = panel(plots.reliability, result)
    curves = {line.get_label(): line for line in axes.lines if line.get_marker() == "o"}
    stated, calibrated = result.calibration_errors
    assert list(curves) == [f"stated, ECE {stated:.3f}", f"calibrated, ECE {calibrated:.3f}"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(curves)
    held_out = held_out_reliability(result.recording, result.profile.setting.arm)
    for line, rows in zip(curves.values(), held_out, strict=True):
        assert len(rows) > 1
        assert list(zip(line.get_xdata(), line.get_ydata(), strict=True)) == [row[:2] for row in rows]
    assert "exit layer 3" in axes.get_title()
    assert "running product" in axes.get_xlabel()


def test_both_curves_of_reliability_are_of_the_same_drafts(tuned: Any) -> None:
    recording = longer(tuned[1])
    arm = recording.arms[-1]
    curves = held_out_reliability(recording, arm)
    drafts = [sum(count for _, _, count in rows) for rows in curves]
    stood = [sum(share * count for _, share, count in rows) for rows in curves]
    assert drafts[0] == drafts[1] > recording.n_tokens  # drafts of one token from everywhere, and longer ones
    assert stood[0] == pytest.approx(stood[1])
    assert curves[0] != curves[1]


@pytest.mark.parametrize("setting", [Setting(2, 3), Setting(1, 0), Setting(3, 4, 0.5)])
def test_the_chosen_point_is_marked_on_the_surface_plain_as_well(tuned: Any, setting: Setting) -> None:
    axes = panel(plots.surface, choosing(tuned[1], setting))
    lengths, exits = ticks(axes)
    assert lengths == ["0", "1", "2", "3", "4"] and exits == ["1", "2", "3"]
    [(x, y)] = starred(axes)
    assert (lengths[int(x)], exits[int(y)]) == (str(setting.draft_length), str(setting.exit_layer))
    speeds = axes.images[0].get_array()
    assert speeds.shape == (3, 5)
    assert speeds[:, 0].tolist() == [1.0] * 3


def test_a_surface_without_drafts_shows_plain_alone(tuned: Any) -> None:
    result = choosing(tuned[1], Setting(1, 0))
    axes = panel(plots.surface, replace(result, found=replace(result.found, surface=())))
    assert ticks(axes) == [["0"], ["1"]]
    assert starred(axes) == [(0.0, 0.0)]
    assert "no drafts within the limits" in axes.get_title()


def test_no_arm_is_marked_where_none_drafts(tuned: Any) -> None:
    result = tuned[1]
    [place] = starred(panel(plots.agreement, choosing(result, Setting(2, 3))))
    assert place == (2.0, pytest.approx(result.recording.agreement[Setting(2, 3).arm]))
    assert starred(panel(plots.agreement, choosing(result, Setting(1, 0)))) == []


def test_the_whole_picture_is_drawn_of_plain_and_of_a_view(tuned: Any, tuned_with_view: Any) -> None:
    for result, setting in ((tuned[1], Setting(1, 0)), (tuned_with_view[2], Setting(4, 3, draft="low_bit"))):
        assert plots.plot(choosing(result, setting)).startswith(b"\x89PNG")
