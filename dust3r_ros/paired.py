"""The first half of a keyframe's way: its image is encoded and paired with the keyframes before it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dust3r_ros.data import ByteImage, Edge, Intrinsics, Keyframe, PreparedImage
from dust3r_ros.encoded import EncodedKeyframe
from dust3r_ros.images import prepare
from dust3r_ros.predictor import ImageSize, PairPredictor
from dust3r_ros.stopwatch import Stopwatch

Described = Callable[[EncodedKeyframe], EncodedKeyframe]


@dataclass(frozen=True, eq=False)
class PairedKeyframe:
    """A keyframe with the predictions between it and the keyframes before it.

    ``guess`` are intrinsics with which the estimate of its camera's begins; ``watch`` has what it took so far.
    """

    new: EncodedKeyframe
    edges: tuple[Edge, ...]
    guess: Intrinsics | None
    watch: Stopwatch


class KeyframeWindow:
    """The keyframes that new ones are paired with: the last that were placed in the map, and those on their way there.

    One thread may ask for the newest and add to those on their way while another places them.
    """

    def __init__(self, limit: int) -> None:
        self._changing = threading.Lock()
        self._limit = limit
        self._placed: deque[EncodedKeyframe] = deque(maxlen=limit)
        self._coming: list[EncodedKeyframe] = []

    @property
    def limit(self) -> int:
        """How many keyframes a new one is paired with at most."""
        return self._limit

    def shorten(self, limit: int) -> None:
        """Keep at most so many keyframes from now on."""
        with self._changing:
            self._limit = limit
            self._placed = deque(self._placed, maxlen=limit)

    def newest(self) -> tuple[EncodedKeyframe, ...]:
        """Those on their way are taken to be placed: the ones a keyframe is paired with before that is known."""
        with self._changing:
            return (*self._placed, *self._coming)[-self._limit :]

    def placed(self) -> tuple[EncodedKeyframe, ...]:
        """The ones a keyframe has to be paired with."""
        with self._changing:
            return tuple(self._placed)

    def comes(self, new: EncodedKeyframe) -> None:
        """A keyframe was paired, and is going to be placed."""
        with self._changing:
            self._coming.append(new)

    def place(self, new: EncodedKeyframe) -> None:
        """A keyframe has its place; it and those before it are on their way no more."""
        with self._changing:
            self._placed.append(new)
            self._arrived(new)

    def leave_out(self, new: EncodedKeyframe) -> None:
        """A keyframe found no place."""
        with self._changing:
            self._arrived(new)

    def _arrived(self, new: EncodedKeyframe) -> None:
        self._coming = [keyframe for keyframe in self._coming if keyframe.index > new.index]

    def go_on_at(self, keyframes: Sequence[EncodedKeyframe]) -> None:
        """The path goes on at others than the last ones, the last of these counts most; without any it begins anew."""
        with self._changing:
            self._placed = deque(keyframes, maxlen=self._limit)


def predict_edges(
    new: EncodedKeyframe, window: Sequence[EncodedKeyframe], predictor: PairPredictor[Any], known: Sequence[Edge] = ()
) -> tuple[Edge, ...]:
    """The predictions of a keyframe with each in the window, both ways; those that are known are not made anew."""
    ordered = [pair for old in window for pair in ((old, new), (new, old))]
    edges = {(edge.i, edge.j): edge for edge in known}
    missing = [(a, b) for a, b in ordered if (a.index, b.index) not in edges]
    predictions = predictor.predict([(a.encoded, b.encoded) for a, b in missing]) if missing else []
    edges.update(((a.index, b.index), Edge(a.index, b.index, p)) for (a, b), p in zip(missing, predictions))
    return tuple(edges[a.index, b.index] for a, b in ordered)


class Pairing:
    """Makes keyframes of images, in one thread; ``window`` may be changed by another.

    ``cameras`` are the intrinsics that a recalled map knew of its cameras, for prepared images.
    """

    def __init__(self, predictor: PairPredictor[Any], image_size: ImageSize, limit: int) -> None:
        """At most ``limit`` keyframes are in the window."""
        self.window = KeyframeWindow(limit)
        self.next_index = 0
        self.cameras: Mapping[str, Intrinsics] = {}
        self._predictor = predictor
        self._image_size = image_size

    def warm_up(self) -> None:
        """Let the predictor do beforehand what the first images, of a usual size, would wait for."""
        usual = prepare(np.zeros((480, 640, 3), np.uint8), self._image_size)
        self._predictor.warm_up((usual.height, usual.width), 2 * self.window.limit)

    def pair(self, image: ByteImage, stamp_ns: int, camera: str, intrinsics: Intrinsics | None, use: str,
             described: Described) -> PairedKeyframe:  # fmt: skip
        """Encode an image (H, W, 3), and pair it with the window.

        ``intrinsics`` are for the image, ``use`` says what for (the option ``intrinsics``); ``described`` adds by what
        the keyframe is found again.
        """
        watch = Stopwatch()
        prepared = prepare(image, self._image_size)
        known, guess = self._known(prepared, camera, intrinsics if use == "given" else None), None
        if known is None and intrinsics is not None and use == "guess":
            guess = prepared.transform.to_network(intrinsics)
            self._predictor.guess(camera, guess)
        keyframe = Keyframe(self.next_index, stamp_ns, camera, prepared)
        self.next_index += 1
        with watch.stage("encode"):
            encoded = self._predictor.encode(prepared, camera, known)
            new = described(EncodedKeyframe(keyframe, encoded, known))
        with watch.stage("decode"):
            edges = predict_edges(new, self.window.newest(), self._predictor)
        self.window.comes(new)
        return PairedKeyframe(new, edges, guess, watch)

    def _known(self, prepared: PreparedImage, camera: str, given: Intrinsics | None) -> Intrinsics | None:
        """What is known of an image's camera beforehand: what is given, or what a recalled map knew of it."""
        if given is not None:
            return prepared.transform.to_network(given)
        remembered = self.cameras.get(camera)
        same = remembered is not None and (remembered.width, remembered.height) == (prepared.width, prepared.height)
        return remembered if same else None
