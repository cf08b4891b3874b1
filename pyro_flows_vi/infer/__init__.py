"""What does not depend on the kind of model: checkpoints, interruptions, progress."""

from pyro_flows_vi.infer.checkpoint import load_checkpoint, save_checkpoint, write_atomically
from pyro_flows_vi.infer.interruption import Interruption
from pyro_flows_vi.infer.progress import progress_bar

__all__ = ["Interruption", "load_checkpoint", "progress_bar", "save_checkpoint", "write_atomically"]
