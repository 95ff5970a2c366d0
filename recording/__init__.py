"""How the means and variances of a network move while it trains: recorded, read back, drawn."""

from recording.log import Recorded, RecordedWeights, find_recordings, read_recording
from recording.plots import KINDS, animate_distributions, plot_lines, plot_weights
from recording.recorder import EXAMPLES, NODES, Recorder, due_batches, moments, recorded_layers, recording

__all__ = [
    "EXAMPLES",
    "KINDS",
    "NODES",
    "Recorded",
    "RecordedWeights",
    "Recorder",
    "animate_distributions",
    "due_batches",
    "find_recordings",
    "moments",
    "plot_lines",
    "plot_weights",
    "read_recording",
    "recorded_layers",
    "recording",
]
