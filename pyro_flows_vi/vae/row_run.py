"""One run of a row of the table: its model, its files, and the record that it leaves."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pyro_flows_vi.datasets import Dataset
from pyro_flows_vi.infer.records import check_folder, versions
from pyro_flows_vi.vae.history import History
from pyro_flows_vi.vae.model import VAE
from pyro_flows_vi.vae.protocols import PROTOCOLS, protocol
from pyro_flows_vi.vae.records import SCHEMA, load_record, save_record
from pyro_flows_vi.vae.rows import Row, build_vae, row

__all__ = ["RowRun", "record_path", "row_identity"]


def record_path(
    folder: str | os.PathLike[str], protocol_name: str, row_name: str, data_name: str, seed: int = 0
) -> Path:
    """Where the record of a run is kept; its checkpoint is beside it, with the suffix ``.ckpt``."""
    return Path(folder) / f"{protocol_name}-{data_name}-{row_name}-seed{seed}.json"


def row_identity(chosen: Row, description: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint must agree with."""
    return {"row": chosen.as_dict(), "data": description}


class RowRun:
    """A row of the table, to be trained from one seed.

    Args:
        data: the data set.
        protocol_name: one of :data:`PROTOCOLS`.
        row_name: one of :data:`ROWS`.
        folder: for the record and the checkpoint.
        seed: of the initial parameters and the training.
        overrides: fields of the protocol to change.
        num_transforms: number of flow steps, where it differs from the row's.
        flow_options: options of the flow, where they differ from the row's.

    Raises:
        ValueError: for unknown names or options, and a likelihood that is not one of these data.
    """

    def __init__(
        self,
        data: Dataset,
        protocol_name: str,
        row_name: str,
        folder: str | os.PathLike[str],
        seed: int,
        overrides: Mapping[str, Any] | None,
        num_transforms: int | None,
        flow_options: Mapping[str, Any] | None,
    ) -> None:
        self.settings = protocol(protocol_name, **(overrides or {}))
        self.chosen = row(row_name, num_transforms, **(flow_options or {}))
        if self.settings.likelihood == "bernoulli" and data.values != "binary":
            raise ValueError(
                f"the Bernoulli likelihood is one of binary pixels, and those of {data.name!r} are {data.values!r}: "
                "choose likelihood=categorical or gaussian"
            )
        self.path = record_path(folder, protocol_name, row_name, data.name, seed)
        self.checkpoint = self.path.with_suffix(".ckpt")
        self.data, self.seed = data, seed

    def begin(self, resume: bool, overwrite: bool) -> VAE:
        """The model, with its initial parameters.

        Raises:
            ValueError: where the folder cannot be written to, an older run would be lost, or for unknown flow options.
        """
        check_folder(self.path.parent)
        if not resume and not overwrite:
            for old in (self.path, self.checkpoint):
                if old.exists():
                    raise ValueError(
                        f"{old} holds an older run: resume it (resume), replace it (overwrite) or choose another folder"
                    )
        if resume and self.path.exists() and not self.checkpoint.exists():
            raise ValueError(
                f"{self.path} is the record of a run, and {self.checkpoint.name}, from which it could go on, is not "
                "beside it: train again (overwrite) or choose another folder"
            )
        return build_vae(self.settings, self.chosen, self.data.image_shape, seed=self.seed)

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """What its checkpoint must agree with, beside seed and settings."""
        return row_identity(self.chosen, self.data.describe())

    def save(
        self, vae: VAE, history: History, machine: dict[str, Any], resume: bool, together: Sequence[int] = ()
    ) -> None:
        """Write the record, with the results of the one before where it is of the same epochs.

        Args:
            vae: the model.
            history: of its training.
            machine: what it was trained on.
            resume: whether it went on from an older run.
            together: the seeds that were trained as one program, where they were.
        """
        preset = PROTOCOLS[self.settings.name].as_dict()
        settings, flow = self.settings.as_dict(), vae.posterior.flow
        record = {
            "schema": SCHEMA,
            "protocol": self.settings.name,
            "row": self.chosen.name,
            "seed": self.seed,
            "settings": settings,
            "overrides": {name: value for name, value in settings.items() if value != preset[name]},
            "flow": self.chosen.as_dict(),
            "data": self.identity["data"],
            "versions": versions(),
            "machine": machine,
            "parameters": {
                "total": sum(p.numel() for p in vae.parameters()),
                "flow": 0 if flow is None else sum(p.numel() for p in flow.parameters()),
            },
            "training": {**_training(history), **({"together": list(together)} if together else {})},
            "results": None,
        }
        if resume and self.path.exists():
            old = load_record(self.path)
            if old["training"]["epochs"] == history.epochs:
                record["results"] = old["results"]
        save_record(self.path, record)


def _training(history: History) -> dict[str, Any]:
    return {
        "epochs": history.epochs,
        "best_epoch": history.best_epoch,
        "best_validation_elbo": history.best_elbo,
        "stop_reason": history.stop_reason,
        "skipped_steps": history.skipped_steps,
        "seconds": history.seconds,
        "curves": history.curves,
    }
