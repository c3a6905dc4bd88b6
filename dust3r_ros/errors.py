"""The package's exceptions: one root, one subclass a concern.

Library code raises these for what a user can get wrong (files, checkpoints, recordings, options).
A programming mistake raises ``ValueError`` or ``TypeError`` as usual. The command line and the node
are the only places that catch ``Dust3rError`` and turn it into one line.
"""


class Dust3rError(Exception):
    """Root of every error this package raises on purpose."""


class ConfigError(Dust3rError):
    """An option is unknown, of the wrong type, or out of range."""


class ImageError(Dust3rError):
    """An image cannot be read or has a form that is not supported."""


class CheckpointError(Dust3rError):
    """A model file is missing, damaged, hostile or of an unknown architecture."""


class PairingError(Dust3rError):
    """A scene graph cannot be made from the given views."""


class AlignmentError(Dust3rError):
    """Pairwise predictions cannot be brought into one world."""


class RecordingError(Dust3rError):
    """A bag, video or posed image pack cannot be read."""


class TrainingError(Dust3rError):
    """A training run cannot start, go on or be resumed."""


class ExportError(Dust3rError):
    """A result cannot be written."""


class ViewerError(Dust3rError):
    """The web page cannot be served."""


class FleetError(Dust3rError):
    """Recordings cannot be handed out to be reconstructed, or their results be kept apart."""


class DeviceMemoryError(Dust3rError):
    """The device has too little memory for the work in hand; less of it may fit."""


class RosError(Dust3rError):
    """ROS is missing, incomplete, or a message has a form that is not supported."""
