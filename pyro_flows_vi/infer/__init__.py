"""Training, checkpoints and diagnostics that do not depend on the kind of model."""

from pyro_flows_vi.infer.checkpoint import load_checkpoint, save_checkpoint, write_atomically

__all__ = ["load_checkpoint", "save_checkpoint", "write_atomically"]
