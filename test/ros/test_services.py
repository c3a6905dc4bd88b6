"""What the services answer when the node changes while a request is being read; the rest is tested with whole nodes."""

from rclpy.executors import SingleThreadedExecutor

from dust3r_ros.ros.services import Services

PATIENCE_S = 20.0


def test_a_request_whose_mapper_is_gone_once_it_is_read_is_refused(node):
    in_force = ["a mapper"]
    services = Services(node, lambda: in_force[0], reset=None, pause=None, keyframe_now=None)
    done = []
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    answered = executor.create_task(
        services._answered(lambda *given: done.append(given), reads=lambda _: in_force.__setitem__(0, None))
    )
    executor.spin_until_future_complete(answered, PATIENCE_S)
    assert answered.result() == (None, "the node is stopping")
    assert not done
    executor.shutdown()
