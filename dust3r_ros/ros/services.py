"""The node's own services, beside those of its life cycle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.node import Node
from rclpy.task import Future
from std_srvs.srv import SetBool, Trigger

from dust3r_ros.errors import Dust3rError, RosError
from dust3r_ros.ros.mapper import Mapper
from dust3r_ros.srv import SaveMap


class Services:
    """Reset, pause, save_map and keyframe_now. ``mapper`` gives the one in force, None while unconfigured."""

    def __init__(self, node: Node, mapper: Callable[[], Mapper | None], pause: Callable[[bool], None],
                 keyframe_now: Callable[[], str]) -> None:  # fmt: skip
        """``pause`` is told whether to pause; ``keyframe_now`` does it, and says why not when it cannot."""
        self._node = node
        self._mapper = mapper
        self._pause = pause
        self._keyframe_now = keyframe_now
        # A service that waits for the worker must not keep other callbacks waiting, as it would in their group.
        group = ReentrantCallbackGroup()
        self._woken = node.create_guard_condition(lambda: None, callback_group=group)
        reset: Any = self._on_reset  # rclpy's executor knows coroutines, its types do not
        save: Any = self._on_save_map
        node.create_service(Trigger, "~/reset", reset, callback_group=group)
        node.create_service(SaveMap, "~/save_map", save, callback_group=group)
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
        _, response.message = await self._in_worker(lambda mapper: mapper.reset())
        response.success = not response.message
        response.message = response.message or "map, path and counts are empty"
        return response

    async def _on_save_map(self, request: SaveMap.Request, response: SaveMap.Response) -> SaveMap.Response:
        saved, response.message = await self._in_worker(lambda mapper: (mapper.save(request.path), mapper.map_points))
        response.success = not response.message
        if saved is not None:
            files, points = saved
            response.files = [str(file) for file in files]
            response.message = f"{points} points written"
        return response

    async def _in_worker(self, task: Callable[[Mapper], Any]) -> tuple[Any, str]:
        """The result of a task done by the worker, or None and what went wrong, without blocking the executor."""
        mapper = self._mapper()
        if mapper is None:
            return None, "the node is not configured"
        answered: Future[tuple[Any, str]] = Future(executor=self._node.executor)

        def answer(done: Any) -> None:
            error = RosError("the node is stopping") if done.cancelled() else done.exception()
            if error is not None and not isinstance(error, Dust3rError):
                self._node.get_logger().error(f"a service failed: {type(error).__name__}: {error}")
            answered.set_result((None, str(error) or "failed") if error is not None else (done.result(), ""))
            if self._node.context.ok():
                self._woken.trigger()  # the executor sleeps until something happens

        mapper.call(lambda: task(mapper), answer)
        return await answered or (None, "")
