"""The data of a training of several workers: the chief prepares them, the others open what it has made.

Called by the train task. With one worker it is preparation and nothing else.
"""

from __future__ import annotations

import json

from tlt_api.failures import Reason
from tlt_api.model import Anchors
from tlt_api.trainingjob import TrainingJobSpec
from tlt_runner.context import Context
from tlt_runner.data.preparation.prepare import prepare
from tlt_runner.data.records import Records, load_records
from tlt_runner.errors import RunnerError
from tlt_runner.training.checkpoint.state import Position
from tlt_runner.training.distributed.workers import Workers
from tlt_runner.training.initial_model import with_anchors


def prepared(spec: TrainingJobSpec, context: Context, workers: Workers) -> tuple[Records, TrainingJobSpec]:
    """The records, and the spec with the anchors to train with.

    The others wait without a limit, as preparation takes as long as it takes, but end when the chief does.

    Raises:
        RunnerError: Whatever preparation raises; on the others also what opening the records raises.
    """
    if workers.chief:
        records = prepare(
            spec.dataset, context.storage, spec.output.uri, context.reporter, context.stop, spec.model.anchors
        )
        spec = with_anchors(spec, records, context.reporter)
        anchors = spec.model.anchors.model_dump(mode="json", by_alias=True)
        workers.told(json.dumps({"uri": records.uri, "digest": records.digest, "anchors": anchors}))
        return records, spec
    made = json.loads(workers.told_later(context.stop))
    records = load_records(context.storage, made["uri"], made["digest"])
    model = spec.model.model_copy(update={"anchors": Anchors.model_validate(made["anchors"])})
    return records, spec.model_copy(update={"model": model})


def agreed(start: Position, workers: Workers) -> Position:
    """Where all workers go on.

    Raises:
        RunnerError: StorageUnavailable where this worker has found another checkpoint than the chief.
    """
    own = start.model_dump_json()
    if workers.told(own) == own:
        return start
    raise RunnerError(
        Reason.STORAGE_UNAVAILABLE,
        f"worker {workers.index} goes on after epoch {start.epoch} and step {start.step}, the others do not: "
        "expected all workers to read the same checkpoint",
        "Let spec.output.uri be a volume that all nodes mount (ReadWriteMany), or S3.",
    )
