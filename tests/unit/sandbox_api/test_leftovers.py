from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.owners import Owner, Standing
from common.processes import GATEWAY, KEEPER, Helper
from netpolicy.plan import tag_of
from sandbox_api.host.leftovers import Group, Survey, Tagged, belongings, gone

OLD, NEW = "own" + "a" * 26, "own" + "b" * 26
STATE = "/var/lib/isobox"
BOX = "sbx" + "c" * 26
TABLE = frozenset({"table isobox_ab12"})


def made(owner: str) -> Survey:
    """All that a server of this version makes."""
    return Survey(
        helpers=(Helper(1, KEEPER, owner, STATE), Helper(2, GATEWAY, owner, STATE)),
        groups=(Group(BOX, owner, STATE, frozenset({3})), Group("", owner)),
        tagged=(Tagged("ab12", TABLE, owner, "198.19.4.1"),),
        mounts=((STATE, f"{STATE}/run/{BOX}/overlay"),),
    )


@pytest.mark.parametrize("standing", list(Standing))
def test_all_that_a_server_made_is_its_owners(standing: Standing) -> None:
    owner = Owner(OLD, STATE, 7, "ab12", "198.19.4.0/22")
    survey = replace(made(OLD), owners={OLD: (owner, standing)})
    if standing is not Standing.GONE:
        survey = replace(survey, identities={STATE: OLD}, states={STATE: standing})
    found = belongings(survey)
    assert all(each.standing is standing for each in found)
    first = next(each for each in found if each.owner.id == OLD)
    assert (len(first.helpers), len(first.groups), len(first.tagged)) == (2, 2, 1)
    assert bool(gone(found)) == (standing is Standing.GONE)
    assert "pid 7" in first.words()
    assert STATE in first.words()


def test_a_state_begun_anew_owns_nothing_of_the_one_before() -> None:
    survey = replace(
        made(OLD),
        owners={OLD: (Owner(OLD, STATE, 7, "ab12"), Standing.GONE), NEW: (Owner(NEW, STATE, 8), Standing.LIVING)},
        identities={STATE: NEW},
        states={STATE: Standing.LIVING},
        mounts=(),
    )
    assert {each.owner.id for each in gone(belongings(survey))} == {OLD}


def test_without_a_record_the_state_directory_tells() -> None:
    """/run was emptied."""
    lives = replace(made(OLD), identities={STATE: OLD}, states={STATE: Standing.LIVING}, servers={STATE: 9})
    assert gone(belongings(lives)) == []
    assert next(each for each in belongings(lives) if each.owner.id == OLD).owner.pid == 9
    assert {each.owner.id for each in gone(belongings(made(OLD)))} >= {OLD}


def before(**fields: object) -> Survey:
    """All that a server of the version before made: without an id, and a gateway that names nothing."""
    survey = Survey(
        helpers=(Helper(1, KEEPER, "", STATE), Helper(2, GATEWAY, "", STATE)),
        groups=(Group(BOX, "", STATE, frozenset({3})),),
        tagged=(Tagged(tag_of(Path(STATE)), TABLE, "", "198.19.4.1"),),
    )
    return replace(survey, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("standing", [Standing.LIVING, Standing.WAITING])
def test_a_server_of_before_is_known_by_its_directory(standing: Standing) -> None:
    there = before(
        states={STATE: standing},
        networks={STATE: tag_of(Path(STATE))},
        sandboxes={STATE: frozenset({BOX})},
        anchored=frozenset({1, 2}),
    )
    assert gone(belongings(there)) == []
    assert len(belongings(there)) == 1
    # One whose sandbox has ended just now: its group is empty, and names nothing.
    assert gone(belongings(replace(there, groups=(Group(BOX),)))) == []


def test_a_directory_of_before_that_this_version_goes_on_with_keeps_all() -> None:
    there = before(
        states={STATE: Standing.LIVING},
        owners={NEW: (Owner(NEW, STATE, 8, tag_of(Path(STATE))), Standing.LIVING)},
        identities={STATE: NEW},
        networks={STATE: tag_of(Path(STATE))},
        sandboxes={STATE: frozenset({BOX})},
        anchored=frozenset({1, 2}),
    )
    found = belongings(there)
    assert gone(found) == []
    assert [(len(each.helpers), len(each.groups), len(each.tagged)) for each in found] == [(2, 1, 1)]


def test_what_a_server_of_before_left_whose_directory_is_gone_or_anew() -> None:
    assert sum(len(each.helpers) + len(each.groups) + len(each.tagged) for each in gone(belongings(before()))) == 4
    anew = before(
        states={STATE: Standing.LIVING},
        owners={NEW: (Owner(NEW, STATE, 8), Standing.LIVING)},
        identities={STATE: NEW},
        sandboxes={STATE: frozenset()},
    )
    left = gone(belongings(anew))
    assert sum(len(each.helpers) + len(each.groups) + len(each.tagged) for each in left) == 4
    assert NEW not in {each.owner.id for each in left}


def test_a_helper_that_names_nothing_is_not_judged() -> None:
    assert gone(belongings(Survey(helpers=(Helper(2, GATEWAY),)))) == []


STANDINGS = st.sampled_from([Standing.LIVING, Standing.WAITING])
IDS = st.sampled_from([OLD, NEW, ""])
PATHS = st.sampled_from([STATE, "/other", ""])


@given(
    st.dictionaries(st.sampled_from([OLD, NEW]), st.tuples(PATHS, st.sampled_from(list(Standing)))),
    st.lists(st.builds(Helper, st.integers(1, 9), st.just(KEEPER), IDS, PATHS)),
    st.lists(st.builds(Group, st.just(BOX), IDS, PATHS)),
    st.lists(st.builds(Tagged, st.sampled_from(["ab12", tag_of(Path(STATE))]), st.just(TABLE), IDS)),
    st.dictionaries(PATHS.filter(bool), STANDINGS),
)
def test_nothing_is_lost_or_doubled_and_no_living_owners_thing_is_gone(
    records: dict[str, tuple[str, Standing]],
    helpers: list[Helper],
    groups: list[Group],
    tagged: list[Tagged],
    states: dict[str, Standing],
) -> None:
    owners = {id_: (Owner(id_, path), standing) for id_, (path, standing) in records.items()}
    found = belongings(
        Survey(owners=owners, states=states, helpers=tuple(helpers), groups=tuple(groups), tagged=tuple(tagged))
    )
    assert sorted(map(str, (h for each in found for h in each.helpers))) == sorted(map(str, helpers))
    assert sorted(map(str, (g for each in found for g in each.groups))) == sorted(map(str, groups))
    assert sorted(map(str, (t for each in found for t in each.tagged))) == sorted(map(str, tagged))
    living = {id_ for id_, (_, standing) in owners.items() if standing is not Standing.GONE}
    for each in gone(found):
        assert each.owner.id not in living
        assert not {thing.owner for thing in (*each.helpers, *each.groups, *each.tagged)} & living
