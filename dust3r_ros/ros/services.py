"""The node's own services, beside those of its life cycle."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.node import Node
from rclpy.task import Future
from std_srvs.srv import SetBool, Trigger

from dust3r_ros.errors import Dust3rError, RosError
from dust3r_ros.memory import MapMemory
from dust3r_ros.ros.localize import localized, query_of
from dust3r_ros.ros.mapper import Mapper
from dust3r_ros.ros.saving import folder_inside, map_inside
from dust3r_ros.srv import LoadMap, Localize, SaveMap


class Services:
    """Reset, pause, keyframe_now, save_map, load_map and localize.

    ``mapper`` gives the one in force, None while unconfigured.
    """

    def __init__(
        self, node: Node, mapper: Callable[[], Mapper | None], reset: Callable[[Mapper], Any],
        pause: Callable[[bool], None], keyframe_now: Callable[[], str],
    ) -> None:  # fmt: skip
        """``reset`` gives a future; ``pause`` is told whether to; ``keyframe_now`` says why not when it cannot."""
        self._node = node
        self._mapper = mapper
        self._reset = reset
        self._pause = pause
        self._keyframe_now = keyframe_now
        # What is wrong with a request is found there, without waiting for the mapper or keeping others waiting.
        self._reading = ThreadPoolExecutor(1, thread_name_prefix="dust3r requests")
        # A service that waits for the worker must not keep other callbacks waiting, as it would in their group.
        group = ReentrantCallbackGroup()
        self._woken = node.create_guard_condition(lambda: None, callback_group=group)
        on_reset: Any = self._on_reset  # rclpy's executor knows coroutines, its types do not
        on_save: Any = self._on_save_map
        node.create_service(Trigger, "~/reset", on_reset, callback_group=group)
        node.create_service(SaveMap, "~/save_map", on_save, callback_group=group)
        on_load: Any = self._on_load_map
        on_localize: Any = self._on_localize
        node.create_service(LoadMap, "~/load_map", on_load, callback_group=group)
        node.create_service(Localize, "~/localize", on_localize, callback_group=group)
        node.create_service(SetBool, "~/pause", self._on_pause)
        node.create_service(Trigger, "~/keyframe_now", self._on_keyframe_now)

    def _on_pause(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        self._pause(request.data)
        response.success, response.message = True, "paused" if request.data else "running"
        self._node.get_logger().info(response.message)
        return response

    def _on_keyframe_now(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.message = self._keyframe_now()
        response.success = not response.message
        response.message = response.message or "the next image becomes a keyframe"
        return response

    async def _on_reset(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        _, response.message = await self._answered(self._reset)
        response.success = not response.message
        response.message = response.message or "map, path and counts are empty"
        return response

    async def _on_save_map(self, request: SaveMap.Request, response: SaveMap.Response) -> SaveMap.Response:
        saved, response.message = await self._answered(
            lambda mapper, _: mapper.save(request.path),
            reads=lambda mapper: folder_inside(mapper.config.map_folder, request.path),
        )
        response.success = not response.message
        if saved is not None:
            response.files = [str(file) for file in saved.files]
            response.message = f"{saved.points} points written"
        return response

    async def _on_load_map(self, request: LoadMap.Request, response: LoadMap.Response) -> LoadMap.Response:
        loaded, response.message = await self._answered(
            lambda mapper, memory: mapper.load(memory),
            reads=lambda mapper: _map_for(mapper, request.path),
        )
        response.success = loaded is not None
        if loaded is not None:
            response.message = f"{loaded.keyframes} keyframes, {loaded.points} points; new images are looked for in it"
            self._node.get_logger().info(f"loaded {request.path}: {response.message}")
        return response

    async def _on_localize(self, request: Localize.Request, response: Localize.Response) -> Localize.Response:
        answer, response.message = await self._answered(
            lambda mapper, query: mapper.ask(partial(localized, query, mapper.frames.map)),
            reads=lambda mapper: query_of(request, mapper.config.rectified),
        )
        return answer if answer is not None else response

    async def _answered(
        self, does: Callable[..., Any], reads: Callable[[Mapper], Any] | None = None
    ) -> tuple[Any, str]:  # fmt: skip
        """The result of what the mapper ``does``, or None and what went wrong, without blocking the executor.

        What it is asked to do is read before, in a thread that waits for nothing else: it is refused at once.
        """
        if (mapper := self._mapper()) is None:
            return None, "the node is not configured"
        if reads is None:
            return await self._finished(does(mapper))
        read, refused = await self._finished(self._reading.submit(reads, mapper))
        if self._mapper() is not mapper:
            return None, "the node is stopping"
        return (None, refused) if refused else await self._finished(does(mapper, read))

    async def _finished(self, task: Any) -> tuple[Any, str]:
        """The result of another thread's task, or None and what went wrong."""
        finished: Future[tuple[Any, str]] = Future(executor=self._node.executor)

        def tell(done: Any) -> None:
            error = RosError("the node is stopping") if done.cancelled() else done.exception()
            if error is not None and not isinstance(error, Dust3rError):
                self._node.get_logger().error(f"a service failed: {type(error).__name__}: {error}")
            finished.set_result((None, str(error) or "failed") if error is not None else (done.result(), ""))
            if self._node.context.ok():
                self._woken.trigger()  # the executor sleeps until something happens

        task.add_done_callback(tell)
        return await finished or (None, "")


def _map_for(mapper: Mapper, path: str) -> MapMemory:
    memory = map_inside(mapper.config.map_folder, path)
    mapper.reconstructor.check_recallable(memory)
    return memory
