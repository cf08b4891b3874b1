"""A run of ``pyro-flows-vi posterior``: its stages, and the files that each leaves behind."""

from __future__ import annotations

import importlib.util
import json
import math
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch.utils._pytree import tree_map

from pyro_flows_vi.cli._page import render_page
from pyro_flows_vi.guides import AutoFlow
from pyro_flows_vi.infer import FitResult, fit, load_checkpoint, objectives, save_checkpoint, write_atomically
from pyro_flows_vi.infer.arviz_export import to_arviz
from pyro_flows_vi.infer.checkpoint import differences
from pyro_flows_vi.infer.diagnostics import diagnose
from pyro_flows_vi.infer.layout import trace_model
from pyro_flows_vi.infer.records import machine, versions
from pyro_flows_vi.numerics.new_tensors import placement, precision

__all__ = ["Run"]

FORMAT = "pyro_flows_vi posterior"
#: seeds of the stages after the fit differ from its own, so that no draw is used twice
DIAGNOSIS, EXPORT = 1, 2


class Run:
    """One posterior and its folder.

    Args:
        model: the Pyro model.
        args: its positional arguments, and ``kwargs`` the others.
        asked: all settings that decide the fit, as JSON values.
        out: the folder.
        checkpoint: the file with the state of an unfinished fit.
        device: where the tensors among the arguments are moved to.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        asked: dict[str, Any],
        out: Path,
        checkpoint: Path,
        device: str = "cpu",
    ) -> None:
        self.model, self.args, self.kwargs = model, args, kwargs
        self.asked: dict[str, Any] = json.loads(json.dumps(asked))
        self.out, self.checkpoint = out, checkpoint
        self.record: dict[str, Any] = {}
        self.device = torch.device(device)
        self._there = torch.empty(0, device=self.device)
        self.seed: int = asked["seed"]
        self.settings = dict(asked["fit"])
        self.dtype = getattr(torch, self.settings.pop("dtype", "float32"))
        self.args, self.kwargs = tree_map(self._cast, (args, kwargs))
        self.report: Any = None

    def _cast(self, leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        return leaf.to(self.device, self.dtype if leaf.is_floating_point() else leaf.dtype)

    def open(self, resume: bool, overwrite: bool) -> None:
        """Check everything that can be checked before the fit, and begin the record.

        Raises:
            ValueError: for a missing package, an older run that is in the way or has other settings, an unknown flow,
                a model that fails.
        """
        if importlib.util.find_spec("arviz") is None:
            raise ValueError("the diagnosis needs ArviZ: pip install arviz h5netcdf")
        path = self.out / "report.json"
        older = _read_record(path) if path.exists() and not overwrite else None
        if older is not None and older.get("fit") is None and not self.checkpoint.exists():
            older = None  # it failed before there was anything to lose, say by data with NaN
        if older is not None and not resume:
            raise ValueError(f"{path} is the record of an older run: say --resume, --overwrite, or another --out")
        if older is not None and (changed := differences(older["asked"], self.asked)):
            raise ValueError(f"{path} is of a run with other settings: {'; '.join(changed)}")
        if overwrite:
            for stale in (self.checkpoint, *(self.out / name for name in ("guide.pt", "posterior.nc", "report.html"))):
                stale.unlink(missing_ok=True)
        elif self.checkpoint.exists() and not resume:
            raise ValueError(
                f"{self.checkpoint} is the state of an older fit: say --resume, --overwrite, or another one"
            )
        with precision(self.dtype), placement(self._there):
            self.guide = AutoFlow(
                self.model, self.asked["flow"], self.asked["num_transforms"], **_tuples(self.asked["flow_options"])
            )
            _require_run(self.model, self.args, self.kwargs)
        self.record = older or {
            "format": FORMAT,
            "stage": "fit",
            "asked": self.asked,
            "versions": versions(),
            "machine": machine(self.device),
            "flow": None,
            "fit": None,
            "diagnosis": None,
            "posterior": None,
        }
        self._save()

    def fit(self, progress: bool) -> FitResult:
        """Fit, or take over the fit of the run that is resumed; the parameters are then in ``guide.pt``."""
        file = self.out / "guide.pt"
        with precision(self.dtype), placement(self._there):
            if self.record["fit"] is not None and self.record["stage"] != "fit" and file.exists():
                torch.manual_seed(self.seed)
                self.guide.setup(*self.args, **self.kwargs)
                self.guide.load_state_dict(load_checkpoint(file, kind="guide", settings=self.asked)[1])
                self.result = FitResult(**self.record["fit"])
                return self.result
            options = dict(self.settings)
            if "objective" in options:
                options["objective"] = getattr(objectives, options["objective"])()
            self.out.mkdir(parents=True, exist_ok=True)
            self.result = fit(
                self.model,
                self.guide,
                *self.args,
                kwargs=self.kwargs,
                seed=self.seed,
                checkpoint=self.checkpoint,
                resume=True,
                progress=progress,
                dtype=self.dtype,
                **options,
            )
        save_checkpoint(file, self.guide.state_dict(), kind="guide", settings=self.asked)
        self.record["fit"] = asdict(self.result)
        if self.result.stop_reason != "interrupted":
            self.record["stage"] = "diagnosis"
        self._save()
        return self.result

    def diagnose(self, num_draws: int) -> Any:
        """Weigh draws of the guide, and write the page."""
        with precision(self.dtype), placement(self._there):
            self.report = diagnose(
                self.model,
                self.guide,
                *self.args,
                num_draws=num_draws,
                fit=self.result,
                kwargs=self.kwargs,
                seed=self.seed + DIAGNOSIS,
            )
        guide = self.guide
        flow = {"name": guide.flow_name, "num_transforms": guide.num_transforms, "options": guide.flow_options}
        self.record["flow"], self.record["diagnosis"] = flow, self.report.as_dict()
        self.record["stage"] = "posterior"
        self._save()
        self._write_page(None)
        return self.report

    def export(self, num_draws: int, resample: bool) -> Any:
        """The draws as ArviZ data."""
        with precision(self.dtype), placement(self._there):
            groups = to_arviz(
                self.model,
                self.guide,
                *self.args,
                num_draws=num_draws,
                kwargs=self.kwargs,
                resample=resample,
                seed=self.seed + EXPORT,
            )
        draws = groups["posterior"]
        self.draws = {str(name): draws[name].values[0] for name in draws.data_vars}  # of the only chain
        return groups

    def finish(self, num_draws: int, resample: bool) -> None:
        """Add the plots to the page, and close the record."""
        self._write_page(self.draws)
        self.record["posterior"] = {"draws": num_draws, "resampled": resample}
        self.record["stage"] = "finished"
        self._save()

    def _write_page(self, draws: Any) -> None:
        write_atomically(self.out / "report.html", render_page(self.record, self.report, draws).encode())

    def _save(self) -> None:
        write_atomically(self.out / "report.json", (json.dumps(_finite(self.record), indent=1) + "\n").encode())


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no record of a run: {error}; say --overwrite, or another --out") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT or "asked" not in record:
        raise ValueError(f"{path} is no record of this command: say --overwrite, or another --out")
    return record


def _tuples(options: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}


def _finite(value: Any) -> Any:
    """JSON has no inf and no NaN."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class _Whereabouts(Messenger):
    """Remembers the site at which a run of a model is."""

    def __init__(self) -> None:
        super().__init__()
        self.at: str | None = None
        self.last: str | None = None

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        self.at = msg["name"]

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        self.at, self.last = None, msg["name"]

    def __str__(self) -> str:
        if self.at is not None:
            return f"at site {self.at!r}"
        return "before its first site" if self.last is None else f"after site {self.last!r}"


def _require_run(model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Run the model once, so that its own errors are told with the site and the line."""
    where = _Whereabouts()
    try:
        run = trace_model(where(model), args, kwargs)
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        code = getattr(model, "__code__", None)
        own = [f for f in frames if code is not None and f.filename == code.co_filename]
        line = f", {Path(own[-1].filename).name} line {own[-1].lineno}" if own else ""
        reason = str(error).split("\n")[0]
        raise ValueError(f"the model fails {where}{line}: {type(error).__name__}: {reason}") from error
    site: Any
    for name, site in run.nodes.items():
        if site["type"] != "sample":
            continue
        try:
            with torch.no_grad():
                site["fn"].log_prob(site["value"])
        except Exception as error:
            reason = str(error).split("\n")[0]
            raise ValueError(f"the model fails at site {name!r}, whose value cannot be scored: {reason}") from error
