"""News of pools, for subscribers of any speed."""

from pool_managerd.pools.feed import ChangeFeed


async def test_a_slow_subscriber_gets_each_pool_once() -> None:
    """However often a pool changes, what waits for a slow subscriber is one id. LO-302."""
    feed = ChangeFeed(4)
    with feed.subscribe() as changes:
        for _ in range(1000):
            feed.publish("a")
            feed.publish("b")

        assert await changes.next(1000) == {"a", "b"}
        assert await changes.next(1) == frozenset()


async def test_a_subscription_ends_with_its_block() -> None:
    """Nobody is told after leaving, and the place is free again."""
    feed = ChangeFeed(1)
    with feed.watch() as changes:
        assert feed.full

    feed.publish("a")

    assert not feed.full
    assert changes.take() == frozenset()


def test_parts_of_this_process_take_no_place_of_a_watcher() -> None:
    """The link, a shutdown and every pool that waits for a reload listen too."""
    feed = ChangeFeed(1)
    with feed.subscribe() as link, feed.subscribe():
        assert not feed.full

        with feed.watch() as changes:
            feed.publish("a")

    assert (changes.take(), link.take()) == ({"a"}, {"a"})
