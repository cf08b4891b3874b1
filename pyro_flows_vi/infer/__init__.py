"""From a model to a posterior: log density, objectives, fit, diagnosis, export; checkpoints and interruptions."""

from pyro_flows_vi.infer.arviz_export import to_arviz
from pyro_flows_vi.infer.checkpoint import load_checkpoint, save_checkpoint, write_atomically
from pyro_flows_vi.infer.diagnostics import diagnose
from pyro_flows_vi.infer.fit import fit
from pyro_flows_vi.infer.importance import draw_weighted, resample
from pyro_flows_vi.infer.interruption import Interruption
from pyro_flows_vi.infer.log_density import LogDensity
from pyro_flows_vi.infer.objectives import ELBO, IWELBO, DReG, PathELBO, Renyi, linear_tempering
from pyro_flows_vi.infer.plateau import Plateau
from pyro_flows_vi.infer.progress import progress_bar
from pyro_flows_vi.infer.result import FitResult

__all__ = [
    "ELBO",
    "IWELBO",
    "DReG",
    "FitResult",
    "Interruption",
    "LogDensity",
    "PathELBO",
    "Plateau",
    "Renyi",
    "diagnose",
    "draw_weighted",
    "fit",
    "linear_tempering",
    "load_checkpoint",
    "progress_bar",
    "resample",
    "save_checkpoint",
    "to_arviz",
    "write_atomically",
]
