"""MLflow, by default with a database of the run's own."""

import os
import time
from collections.abc import Mapping

import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from conadv._files import is_utf8
from conadv.trainer.run.loggers.logger import LoggedRun

FOLDER = "conadv.folder"
"""The tag by which a resumed run is found again."""


class MLflow:
    """A run of MLflow. A resumed run goes on in it.

    Args:
        run: What is logged.
        tracking_uri: Where to; None is ``$MLFLOW_TRACKING_URI``, or ``mlflow.db`` in the run
            folder, whose path has to be UTF-8 then.
        experiment: Its name; made if it is not there.
    """

    def __init__(
        self, run: LoggedRun, tracking_uri: str | None = None, experiment: str = "conadv"
    ) -> None:
        folder = run.folder.resolve()
        own = f"sqlite:///{folder / 'mlflow.db'}"
        uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI", own)
        if uri == own and not is_utf8(folder):
            raise ValueError(
                f"MLflow's database takes paths in UTF-8 only, and {folder} is none: give it "
                "another place, logging.options.mlflow.tracking_uri=sqlite:////PLACE/mlflow.db"
            )
        self._client = MlflowClient(uri)
        known = self._client.get_experiment_by_name(experiment)
        place = (folder / "mlflow").as_uri() if uri == own else None
        number = known.experiment_id if known else self._client.create_experiment(experiment, place)
        tag = folder.as_uri()
        before = self._client.search_runs([number], f"tags.`{FOLDER}` = '{tag}'")
        if before:
            self._run = before[0].info.run_id
            self._client.update_run(self._run, "RUNNING")
            return
        made = self._client.create_run(number, run_name=run.name, tags={FOLDER: tag})
        self._run = made.info.run_id
        given = [Param(name, str(value)) for name, value in run.settings.items()]
        for start in range(0, len(given), 100):  # more are refused
            self._client.log_batch(self._run, params=given[start : start + 100])

    def scalars(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Log them as ``kind/name``."""
        now = round(time.time() * 1000)
        numbers = [Metric(f"{kind}/{name}", x, now, step) for name, x in values.items()]
        self._client.log_batch(self._run, numbers)

    def pictures(self, step: int, clean: np.ndarray, adversarial: np.ndarray) -> None:
        """Keep two strips of images as artifacts."""
        for name, images in (("clean", clean), ("adversarial", adversarial)):
            strip = np.concatenate(list(images), axis=1)
            self._client.log_image(self._run, strip, f"pictures/{name}.png")

    def close(self) -> None:
        """Mark the run as finished."""
        self._client.set_terminated(self._run)


open_logger = MLflow
