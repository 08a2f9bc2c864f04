"""Groups of a judge's numbers on one scale: by hand, by property, and by simulation."""

from __future__ import annotations

from itertools import pairwise, product
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from babylon_tasks.scoring.agreement import spearman
from babylon_tasks.scoring.judge.groups import halves, plan
from babylon_tasks.scoring.judge.scale import on_one_scale
from benchmarks.judge_groups import JUDGES, NOISES, PRIORS, Setting, simulate

Groups = list[dict[str, float]]


def numbers_of(numbers: st.SearchStrategy[float]) -> st.SearchStrategy[Groups]:
    """Any groups at all: of one id, overlapping in part, in full or not."""
    group = st.dictionaries(st.sampled_from("abcdefghij"), numbers, min_size=1)
    return st.lists(group, min_size=1, max_size=5)


ANY = numbers_of(st.floats(0, 1))
# Sums round: these differ by enough to stay apart
COARSE = numbers_of(st.integers(0, 100).map(lambda hundredths: hundredths / 100))


def test_one_group_stays_as_it_is() -> None:
    assert on_one_scale([{"a": 0.1, "b": 0.75, "c": 0.1}]) == {"a": 0.1, "b": 0.75, "c": 0.1}
    assert on_one_scale([{}, {"a": 0.3}, {}]) == {"a": 0.3}
    assert on_one_scale([{}]) == on_one_scale([]) == {}


def test_one_shared_id_by_hand() -> None:
    # Means .4 and .5, sums of squares .08 each: a common spread, no stretch. Deviations: a -.2,
    # b +.2 | b -.2, c +.2. By symmetry the shifts are -t and t, and b is agreed on at 0, so
    # -t = (0 - .2) / (3 + 1): t = .05, a = -.25, c = .25, b = (.15 - .15) / 2 = 0, about .45.
    scaled = on_one_scale([{"a": 0.2, "b": 0.6}, {"b": 0.3, "c": 0.7}])
    assert scaled == pytest.approx({"a": 0.2, "b": 0.45, "c": 0.7}, abs=1e-8)


def test_squeezed_but_not_clipped_by_hand() -> None:
    # As above with deviations of .5: t = .5/4 = .125, a = .5 - .625 = -.125, c = 1.125. Then all
    # plus .125 and over 1.25.
    scaled = on_one_scale([{"a": 0.0, "b": 1.0}, {"b": 0.0, "c": 1.0}])
    assert scaled == pytest.approx({"a": 0.0, "b": 0.5, "c": 1.0}, abs=1e-8)


def test_unconnected_groups_get_one_mean_and_nearly_one_spread_by_hand() -> None:
    # Sums of squares .02 and .32, common variance .34/4 = .085. Variances of the groups shrunk by
    # one number: (.085 + .02)/3 = .035 and (.085 + .32)/3 = .135. Factors √(.085/.035) = 1.5584
    # and √(.085/.135) = .7935 of the deviations .1 and .4, about .5.
    scaled = on_one_scale([{"a": 0.4, "b": 0.6}, {"c": 0.1, "d": 0.9}])
    expected = {"a": 0.34416, "b": 0.65584, "c": 0.18260, "d": 0.81740}
    assert scaled == pytest.approx(expected, abs=1e-5)


def test_a_group_of_equals_stays_one() -> None:
    # The only deviations are -.3, 0, .3 of the first group: common variance .18/6 = .03, its own
    # (.03 + .18)/4 = .0525, factor √(.03/.0525) = .75593. The shared b is at both means: no shift.
    scaled = on_one_scale([{"a": 0.2, "b": 0.5, "c": 0.8}, {"b": 0.7, "d": 0.7, "e": 0.7}])
    expected = {"a": 0.6 - 0.22678, "b": 0.6, "c": 0.6 + 0.22678, "d": 0.6, "e": 0.6}
    assert scaled == pytest.approx(expected, abs=1e-5)
    assert set(on_one_scale([{"a": 0.1, "b": 0.1}, {"b": 0.9, "c": 0.9}]).values()) == {0.5}


def test_rounding_noise_is_not_blown_up() -> None:
    groups = [{"a": 0.1, "b": 0.5, "c": 0.9}, {"d": 0.3, "e": 0.1 + 0.2, "f": 0.3}]
    scaled = on_one_scale(groups)
    assert scaled["d"] == pytest.approx(scaled["e"], abs=1e-12)


def test_equal_anchors_still_align_the_groups() -> None:
    anchors = dict.fromkeys("pqrs", 0.5)
    scaled = on_one_scale([{**anchors, "a": 0.6, "b": 0.9}, {**anchors, "c": 0.1, "d": 0.4}])
    # The second group saw only those below the anchors, the first only those above
    assert scaled["c"] < scaled["d"] < scaled["p"] < scaled["a"] < scaled["b"]


def test_a_chain_is_followed_to_its_end() -> None:
    # The worst case: no two groups are alike, and each shares ids with its neighbours alone.
    ids = [f"{number:02}" for number in range(40)]
    chain = [{each: k / 3 for k, each in enumerate(ids[n : n + 4])} for n in range(37)]
    scaled = on_one_scale(chain)
    assert all(scaled[one] < scaled[other] for one, other in pairwise(ids))


@given(ANY)
def test_each_id_gets_one_number_from_0_to_1(groups: Groups) -> None:
    scaled = on_one_scale(groups)
    assert set(scaled) == {each for group in groups for each in group}
    assert all(0 <= number <= 1 for number in scaled.values())


@given(COARSE)
def test_a_group_keeps_the_order_of_its_own_ids(groups: Groups) -> None:
    scaled = on_one_scale(groups)
    for group in groups:
        own = [each for each in group if sum(each in other for other in groups) == 1]
        for one, other in product(own, own):
            assert (scaled[one] < scaled[other]) == (group[one] < group[other])


@given(COARSE, st.randoms())
def test_the_order_of_groups_and_ids_does_not_matter(groups: Groups, random) -> None:
    mixed = [dict(random.sample(sorted(group.items()), len(group))) for group in groups]
    random.shuffle(mixed)
    assert on_one_scale(mixed) == pytest.approx(on_one_scale(groups), abs=1e-6)


@given(st.lists(st.floats(-0.1, 0.1), min_size=3, max_size=3), st.randoms())
def test_a_shift_of_a_whole_group_changes_nothing(shifts: list[float], random) -> None:
    ids = [f"a{number}" for number in range(18)]
    groups = [{each: random.uniform(0.45, 0.55) for each in group} for group in plan(ids, 8, "s")]
    shifted = [
        {each: number + shift for each, number in group.items()}
        for group, shift in zip(groups, [*shifts, 0.1], strict=False)
    ]
    one, other = on_one_scale(groups), on_one_scale(shifted)
    common = fmean(other.values()) - fmean(one.values())
    assert other == pytest.approx({each: number + common for each, number in one.items()}, abs=1e-6)


def test_stretched_and_shifted_groups_come_together() -> None:
    ids = [f"a{number:02}" for number in range(40)]
    truth = {each: number / 39 for number, each in enumerate(ids)}
    groups = plan(ids, 12, "s")
    groups[1:2] = halves(groups[1], ids, "s")
    judged = [
        {each: 0.1 * number + (0.3 + 0.1 * number) * truth[each] for each in group}
        for number, group in enumerate(groups)
    ]
    scaled = on_one_scale(judged)
    raw = {each: number for group in judged for each, number in group.items()}
    assert spearman(list(truth.values()), [raw[each] for each in ids]) < 0.95
    assert spearman(list(truth.values()), [scaled[each] for each in ids]) > 0.98


def test_groups_rank_almost_as_well_as_one_prompt_would() -> None:
    """The figure of benchmarks/judge_groups.py for 64 agents in groups of 12, seeds fixed."""
    for noise in NOISES:
        shares = [
            simulate(Setting(noise=noise, prior=prior, judge=judge), ["ours"], 20, seed=7)["ours"]
            for prior, judge in product(PRIORS, JUDGES)
        ]
        assert min(shares) >= 0.95, (noise, shares)


def test_neither_step_can_be_left_out() -> None:
    """Without the spreads, or without the shared ids, the ranking is worse."""
    stretched = simulate(Setting(noise=0.05), ["offset", "ours"], 20, seed=7)
    assert stretched["ours"] > stretched["offset"]
    camps = simulate(Setting(noise=0.05, truth="two camps"), ["moments", "ours"], 20, seed=7)
    assert camps["ours"] > camps["moments"] + 0.02
