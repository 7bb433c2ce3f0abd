"""Turns: no torch, no clock, no batcher."""

from collections import Counter
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from app.serving.fair_queue import CONTENTION_S, FairQueue, Presence, Rounds


def filled(*paths):
    """Give a queue of numbers, counted from 0, with these flows."""
    queue = FairQueue()
    for number, path in enumerate(paths):
        queue.push(number, path)
    return queue


def drained(queue, **options):
    items = []
    while (item := queue.pop(**options)) is not None:
        items.append(item)
    return items


def test_one_flow_is_first_come_first_served():
    assert drained(filled(*[("a", 1)] * 5)) == [0, 1, 2, 3, 4]


def test_callers_take_turns_however_many_requests_one_has():
    queue = filled(("a", 1), ("a", 2), ("a", 3), ("b", 4), ("b", 5))
    assert drained(queue) == [0, 3, 1, 4, 2]


def test_the_requests_of_a_caller_take_turns():
    queue = filled(*[("a", 1)] * 3, ("a", 2))
    assert drained(queue) == [0, 3, 1, 2]


def test_who_comes_late_waits_for_one_of_each_other_flow_only():
    queue = filled(*[("a", 1)] * 9, *[("b", 1)] * 9)
    assert [queue.pop(), queue.pop(), queue.pop()] == [0, 9, 1]
    queue.push("late", ("c", 1))
    assert [queue.pop(), queue.pop(), queue.pop()] == [10, 2, "late"]


def test_a_flow_that_may_not_be_served_keeps_its_turn():
    queue = filled(("a", 1), ("b", 1), ("b", 1), ("a", 1))
    assert queue.pop(lambda path: path != ("a",)) == 1
    assert queue.pop() == 0
    assert drained(queue, may=lambda path: path != ("a",)) == [2]
    assert drained(queue) == [3]


def test_where_none_of_its_requests_may_be_served_a_caller_is_passed_over():
    queue = filled(("a", 1), ("b", 2))
    assert drained(queue, may=lambda path: path != ("a", 1)) == [1]


def test_what_is_taken_out_is_gone_and_its_flow_with_it():
    queue = filled(("a", 1), ("a", 2), ("b", 1))
    assert queue.remove(0, ("a", 1))
    assert not queue.remove(0, ("a", 1))
    assert not queue.remove(7, ("c", 1))
    assert queue.remove(2, ("b", 1))
    assert (len(queue), queue.flows, list(queue)) == (1, 1, [1])
    assert queue.of(("a", 1)).flows == len(queue.of(("a", 1))) == 0
    assert len(queue.of(("a", 2))) == len(queue.of(("a",))) == 1
    assert drained(queue) == [1]


PATHS = st.tuples(st.sampled_from("abcd"), st.integers(1, 3))


@given(st.lists(st.one_of(PATHS, st.none()), max_size=80))
def test_no_flow_waits_for_more_than_one_item_of_another_between_two_of_its_own(steps):
    queue, served, waiting = FairQueue(), [], Counter()
    for number, path in enumerate([*steps, *[None] * len(steps)]):
        if path is not None:
            queue.push((number, path), path)
            waiting[path[0]] += 1
        elif (item := queue.pop()) is not None:
            waiting[item[1][0]] -= 1
            served.append((item[1], dict(waiting)))
    assert len(served) == sum(path is not None for path in steps)
    for caller in "abcd":
        turns = [at for at, (path, _) in enumerate(served) if path[0] == caller]
        for before, after in pairwise(turns):
            if all(left[caller] for _, left in served[before:after]):  # it waited all the time
                between = Counter(path[0] for path, _ in served[before + 1 : after])
                assert max(between.values(), default=0) <= 1


@given(st.lists(PATHS, max_size=60))
def test_nothing_is_lost_and_each_flow_stays_in_its_order(paths):
    items = drained(filled(*paths))
    assert sorted(items) == list(range(len(paths)))
    for path in set(paths):
        own = [item for item in items if paths[item] == path]
        assert own == sorted(own)


@given(st.lists(PATHS, max_size=40), st.data())
def test_requests_of_one_caller_take_turns_as_callers_do(paths, data):
    items = drained(filled(*[("a", request) for _, request in paths]))
    requests = [paths[item][1] for item in items]
    for request in set(requests):
        turns = [at for at, each in enumerate(requests) if each == request]
        for before, after in pairwise(turns):
            assert max(Counter(requests[before + 1 : after]).values(), default=0) <= 1


# Who has been there


CROWD, OTHER = ("a", 1), ("b", 1)


def presence_of(*paths):
    """Give what was seen when a flow of more than two items at once counts as a crowd."""
    presence = Presence(crowd=2)
    for path in paths:
        presence.came(path)
    return presence


def contending():
    """Let another flow come to a crowd at second 0, and leave."""
    presence = presence_of(CROWD, CROWD, CROWD, OTHER)
    presence.left(OTHER, 0)
    return presence


def test_who_was_there_with_a_crowd_is_remembered_for_a_while():
    presence = contending()
    assert presence.contended((), 0.9 * CONTENTION_S)
    assert not presence.contended((), CONTENTION_S)
    assert not presence.contended(("a",), 0)


def test_a_request_beside_a_crowd_of_one_caller_is_remembered_too():
    presence = presence_of(*[("a", 1)] * 3, ("a", 2))
    presence.left(("a", 2), 0)
    assert presence.contended(("a",), 0)
    assert not presence.contended((), 0)


def test_crowds_that_meet_only_take_turns():
    presence = presence_of(*[CROWD] * 3, *[OTHER] * 3)
    for _ in range(3):
        presence.left(OTHER, 0)
    assert not presence.contended((), 0)


def test_flows_without_a_crowd_only_take_turns():
    presence = presence_of(CROWD, CROWD, OTHER)
    presence.left(OTHER, 0)
    assert not presence.contended((), 0)


def test_many_one_after_the_other_are_no_crowd():
    presence = Presence(crowd=2)
    for request in range(9):
        presence.came(("a", request))
        presence.left(("a", request), 0)
    presence.came(OTHER)
    presence.left(OTHER, 0)
    assert not presence.contended((), 0)


def test_a_crowd_that_was_always_alone_holds_every_worker():
    presence = presence_of(CROWD, CROWD, CROWD)
    presence.began([CROWD] * 8)
    assert presence.held_back(filled(CROWD), 2, 0) == set()


def test_a_crowd_leaves_a_worker_to_those_who_were_there_too():
    presence, queue = contending(), filled(CROWD)
    presence.began([CROWD] * 8)
    assert presence.held_back(queue, 3, 0) == set()
    assert presence.held_back(queue, 2, 0) == {("a",)}
    assert presence.held_back(queue, 2, CONTENTION_S) == set()
    presence.ended([CROWD] * 8)
    assert presence.held_back(queue, 2, 0) == set()


def test_who_is_no_crowd_is_not_held_back_however_many_workers_he_holds():
    presence, queue = contending(), filled(OTHER)
    presence.came(OTHER)
    presence.began([OTHER])
    presence.began([OTHER])
    assert presence.held_back(queue, 2, 0) == set()


def test_two_crowds_that_share_a_worker_share_the_next_as_well():
    presence, queue = contending(), filled(CROWD, ("c", 1))
    for _ in range(3):
        presence.came(("c", 1))
    presence.began([CROWD, ("c", 1)] * 4)
    assert presence.held_back(queue, 2, 0) == set()
    assert presence.held_back(filled(CROWD), 2, 0) == {("a",), ("c",)}


@given(st.integers(2, 8), st.lists(st.lists(st.sampled_from("abc"), min_size=1), max_size=7))
def test_no_worker_stays_free_while_every_crowd_waits(workers, batches):
    paths = [(name, 1) for name in "abc"]
    presence = presence_of(*paths * 3, ("d", 1))
    presence.left(("d", 1), 0)
    for batch in batches[: workers - 1]:
        presence.began([(name, 1) for name in batch])
    assert not {("a",), ("b",), ("c",)} <= presence.held_back(filled(*paths), workers, 0)


def test_a_presence_that_everybody_left_keeps_nothing_of_them():
    presence = contending()
    presence.began([CROWD] * 3)
    presence.ended([CROWD] * 3)
    for _ in range(3):
        presence.left(CROWD, 0)
    assert presence._items == presence._most == presence._workers == {}
    assert not any(presence._crowds.values())


# Rounds


def taken(queue, most=8, **options):
    rounds = Rounds(queue, options.pop("held_back", ()), lambda parent: parent == (), **options)
    items = []
    while len(items) < most and (item := queue.pop(rounds.may)) is not None:
        rounds.took(options_path(item))
        items.append(item)
    return items


def options_path(item):
    return item[0], 1


def crowd(**callers):
    queue = FairQueue()
    for name, items in callers.items():
        for number in range(items):
            queue.push((name, number), (name, 1))
    return queue


def test_a_batch_of_contending_flows_has_as_many_of_each():
    batch = taken(crowd(a=9, b=2, c=9))
    assert Counter(name for name, _ in batch) == {"a": 2, "b": 2, "c": 2}


def test_a_flow_that_nobody_shares_the_batch_with_fills_it():
    assert len(taken(crowd(a=9))) == 8
    assert len(taken(crowd(a=9, b=3), held_back={("a",)})) == 3


def test_a_batch_that_must_be_short_has_few_of_each():
    assert Counter(name for name, _ in taken(crowd(a=9, b=9), most_of_flow=2)) == {"a": 2, "b": 2}
