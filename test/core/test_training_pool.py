"""Pairs between those who make them and the training: none is used too often, none is lost."""

from collections import Counter

import pytest
import torch
from training_pairs import WallSource, failing_source, wall_source, walls

from dust3r_ros.errors import TrainingError
from dust3r_ros.training.pairs import PairBatch
from dust3r_ros.training.pool import ChunkMaker, PairStream, PoolSettings, ReplayPool, WorkerChunkMaker

SIZE, OTHER = (28, 42), (42, 42)


def named(*names: int) -> PairBatch:
    """Pairs that can be told apart: the name is the translation."""
    batch = walls(len(names), SIZE)
    batch.second_to_first[:, 0, 3] = torch.tensor([float(n) for n in names])
    return batch


def names_of(batch: PairBatch) -> list[int]:
    return [int(n) for n in batch.second_to_first[:, 0, 3]]


def test_each_pair_is_drawn_exactly_as_often_as_allowed():
    pool, generator = ReplayPool(6, 3), torch.Generator().manual_seed(0)
    pool.add(named(*range(6)))
    drawn: Counter[int] = Counter()
    while pool.available >= 2:
        batch = names_of(pool.draw(2, generator))
        assert len(set(batch)) == 2
        drawn.update(batch)
    assert max(drawn.values()) <= 3
    assert sum(drawn.values()) + sum(3 - drawn[n] for n in range(6)) == 18
    with pytest.raises(ValueError, match="asked for 6"):
        pool.draw(6, generator)


def test_new_pairs_take_the_places_of_used_ones_only():
    pool, generator = ReplayPool(4, 1), torch.Generator().manual_seed(1)
    pool.add(named(0, 1, 2, 3))
    with pytest.raises(ValueError, match="room for 0 pairs, got 1"):
        pool.add(named(9))
    first = names_of(pool.draw(2, generator))
    assert pool.room == 2
    pool.add(named(7, 8))
    rest = names_of(pool.draw(4, generator))
    assert sorted(first + rest) == [0, 1, 2, 3, 7, 8]


def test_a_stream_uses_each_pair_at_most_so_often_and_counts_its_chunks():
    stream = PairStream(ChunkMaker(WallSource()), 12, PoolSettings(24, 2, 12), "cpu", first_chunk=5)
    stream.show([SIZE], (0.1, 1.0), 12)
    generator = torch.Generator().manual_seed(0)
    seen: Counter[bytes] = Counter()
    for _ in range(12):
        seen.update(rgb.numpy().tobytes() for rgb in stream.draw(SIZE, 8, generator).rgb)
    assert max(seen.values()) == 2
    assert sum(seen.values()) == 96
    assert len(seen) <= 12 * (stream.chunks - 5)
    assert stream.chunks <= 5 + 96 // 2 // 12 + 3  # what was drawn, and a pool full


def test_a_stream_gives_every_size_and_forgets_those_of_before():
    stream = PairStream(ChunkMaker(WallSource()), 12, PoolSettings(48, 2, 12), "cpu")
    generator = torch.Generator().manual_seed(0)
    stream.show([SIZE, OTHER], (0.1, 1.0), 12)
    assert stream.draw(OTHER, 4, generator).size == OTHER
    assert stream.draw(SIZE, 4, generator).size == SIZE
    stream.show([OTHER], (0.1, 1.0), 12)
    assert stream.draw(OTHER, 4, generator).size == OTHER
    with pytest.raises(KeyError):
        stream.draw(SIZE, 4, generator)
    with pytest.raises(ValueError, match="at most 36 pairs here, got 37"):
        stream.draw(OTHER, 37, generator)


def test_worker_processes_make_the_same_pairs():
    stream = PairStream(WorkerChunkMaker(wall_source, 2), 12, PoolSettings(48, 1, 24), "cpu")
    try:
        stream.show([SIZE], (0.1, 1.0), 12)
        generator = torch.Generator().manual_seed(0)
        drawn = torch.cat([stream.draw(SIZE, 12, generator).rgb for _ in range(4)])
    finally:
        stream.close()
    made = {
        rgb.numpy().tobytes()
        for number in range(stream.chunks)
        for rgb in walls(12, SIZE, move=(4 * 7 / SIZE[1], 0, 0), seed=number).rgb
    }
    assert {rgb.numpy().tobytes() for rgb in drawn} <= made
    assert len({rgb.numpy().tobytes() for rgb in drawn}) == 48


def test_a_worker_that_fails_is_reported():
    stream = PairStream(WorkerChunkMaker(failing_source, 1), 12, PoolSettings(24, 1, 12), "cpu")
    try:
        stream.show([SIZE], (0.1, 1.0), 12)
        with pytest.raises(TrainingError, match="rendering failed: ArithmeticError: no chunk 0"):
            stream.draw(SIZE, 4, torch.Generator())
    finally:
        stream.close()


def test_a_pool_needs_room_and_uses():
    with pytest.raises(ValueError, match="at least 1, got 0 and 2"):
        ReplayPool(0, 2)


def test_a_small_pool_never_blocks_itself():
    """Batches as large as the pool was made for, of chunks larger than what is free, again and again."""
    for batch in (1, 5, 12, 30):
        stream = PairStream(ChunkMaker(WallSource()), 12, PoolSettings(1, 3, 1), "cpu")
        stream.show([SIZE, OTHER], (0.1, 1.0), batch)
        generator = torch.Generator().manual_seed(0)
        for number in range(12):
            assert len(stream.draw((SIZE, OTHER)[number % 2], batch, generator)) == batch
