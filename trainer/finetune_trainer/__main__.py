"""`python -m finetune_trainer <stage> --run run.json`: run file → stage → answer → exit code."""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import sys
import traceback
import uuid
from collections.abc import Mapping
from pathlib import Path

from finetune_api.answer import StageResult
from finetune_api.environment import POD_UID, RUN_FILE, TERMINATION_LOG, TERMINATION_LOG_FILE
from finetune_api.outcome import ExitCode, Reason
from finetune_api.run import LocalRunSpec, RunSpec, Stage
from pydantic import ValidationError

from finetune_trainer.errors import StageError
from finetune_trainer.interruption import Interruption
from finetune_trainer.launch import ANSWERS_VARIABLE, ProcessAnswer, launch, needs_launch, write_answer
from finetune_trainer.memory import plan_memory
from finetune_trainer.prepared import PREPARED_FILE, PreparedFile
from finetune_trainer.progress import Progress
from finetune_trainer.stages import STAGES, Workspace, inputs_digest
from finetune_trainer.storage import JobStorage, copy_published, cure_of

log = logging.getLogger("finetune_trainer")


def run_stage(stage: Stage, run: RunSpec, writer: str, progress: Progress, *, report_only: bool = False, rank: int = 0) -> StageResult:
    """The stage's answer: of its own earlier run, of the older job it resumes from, or of working now.

    Running a stage twice is free; its manifest is written last and exists only for a finished stage. `report_only` never works:
    it answers for a stage whose pod vanished before anybody read what it said.
    """
    storage = JobStorage(run.storage, writer)
    upstream = storage.manifest(stage.upstream) if stage.upstream else None
    wanted = inputs_digest(run, stage, upstream)
    if storage.manifest(stage) is not None:
        done, _ = storage.finished(stage)
        if done.inputs_digest != wanted:
            raise StageError(Reason.STORAGE_CONFLICT, f"the storage holds stage {stage} of other content; use another prefix")
        log.info("stage %s was finished before; nothing to do", stage)
        return done.result
    if report_only:
        raise StageError(Reason.STAGE_MISSING, f"nothing of stage {stage} is at {storage.uri(storage.folder)}")
    folder = storage.new_folder(stage)
    result = _take_over(stage, run, wanted, storage, folder)
    if result is None:
        result = STAGES[stage].function()(run, Workspace(storage, folder, progress))
    if rank:  # rank 0 publishes for all
        shutil.rmtree(folder, ignore_errors=True)
        return result
    published = storage.publish(stage, folder, wanted, result)
    if stage.is_last and run.retention == "Delete":
        shutil.rmtree(storage.checkpoints, ignore_errors=True)
    return published.result


def _take_over(stage: Stage, run: RunSpec, wanted: str, storage: JobStorage, folder: Path) -> StageResult | None:
    if run.resume_from is None:
        return None
    older = JobStorage(run.resume_from, "reader")
    manifest = older.manifest(stage)
    if manifest is None or manifest.inputs_digest != wanted:
        return None
    copy_published(older, manifest, folder)
    log.info("stage %s taken over from %s", stage, run.resume_from.prefix)
    return _planned(run, folder, _moved(manifest.result, older.uri(older.content(manifest)), storage.uri(folder)))


def _moved(result: StageResult, before: str, after: str) -> StageResult:
    """An answer whose URIs name the copy instead of the older job's files."""
    return StageResult.model_validate_json(result.model_dump_json(by_alias=True).replace(f'"{before}', f'"{after}'))


def _planned(run: RunSpec, folder: Path, result: StageResult) -> StageResult:
    """Prepare's answer with this run's plan: the older job may have asked for another method, batch or device."""
    if result.stage is not Stage.PREPARE or result.plan is None:
        return result
    prepared = PreparedFile.model_validate_json((folder / PREPARED_FILE).read_bytes())
    return result.model_copy(update={"plan": plan_memory(run, prepared.model.shape, prepared.statistics)})


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m finetune_trainer", description="Runs one stage of a fine-tuning run.")
    parser.add_argument("stage", choices=[stage.value for stage in Stage])
    parser.add_argument("--run", default=os.environ.get(RUN_FILE, "run.json"), help="run file (JSON). Default: %(default)s")
    parser.add_argument("--report", action="store_true", help="only repeat the answer of a stage that has finished")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    stage = Stage(options.stage)
    try:
        run = LocalRunSpec.model_validate_json(Path(options.run).read_bytes())
    except (OSError, ValidationError) as error:
        return _end(*_failed(stage, StageError(Reason.INVALID_RUN_FILE, str(error)[:1000])))
    if not options.report and needs_launch(stage, run, os.environ):
        return _tell(launch(stage, options.run, run.gpus_per_node))
    progress = Progress.from_environment(os.environ)
    # A container's first process ignores SIGTERM unless it has a handler; the train stage puts its own in place of this one.
    interruption = Interruption() if STAGES[stage].resumes else Interruption(f"nothing of what stage {stage} did is kept")
    try:
        with interruption.armed():
            result = run_stage(stage, run, _writer(os.environ), progress, report_only=options.report, rank=_rank(os.environ))
        code = ExitCode.OK
    except Exception as error:
        result, code = _failed(stage, interruption.cause(error))
    finally:
        progress.close()
    return _end(result, code)


def _rank(environ: Mapping[str, str]) -> int:
    """This process among those that torchrun started; 0 where it is the only one."""
    return int(environ.get("RANK", "0"))


def _writer(environ: Mapping[str, str]) -> str:
    """Names this process's folders: two processes never write to one."""
    uid = environ.get(POD_UID) or uuid.uuid4().hex
    return f"{uid}-rank{_rank(environ)}" if _rank(environ) else uid


def _failed(stage: Stage, error: Exception) -> tuple[StageResult, ExitCode]:
    """What a stage answers that an error ended."""
    refusal = error if isinstance(error, StageError) else _explained(stage, error)
    answer = refusal.result or StageResult(stage=stage)
    return answer.model_copy(update={"reason": refusal.reason, "message": refusal.message}), refusal.exit_code


def _explained(stage: Stage, error: Exception) -> StageError:
    """An error that no stage foresaw, in words that do not quote the data."""
    if STAGES[stage].reads_text:
        log.error("stage %s crashed:\n%s", stage, _frames(error))
    else:
        log.error("stage %s crashed", stage, exc_info=error)
    if isinstance(error, OSError) and error.errno is not None:
        return StageError(Reason.STORAGE_ERROR, _storage_message(error))
    return _crashed(error)


def _frames(error: BaseException) -> str:
    """The traceback of an error and its causes without their own words, which may quote the data."""
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    own = "".join(traceback.format_tb(error.__traceback__)) + type(error).__name__
    return f"{_frames(cause)}\n\n{own}" if cause else own


def _storage_message(error: OSError) -> str:
    where = f" at {error.filename}" if isinstance(error.filename, str) else ""
    return f"{error.strerror}{where}; {cure_of(error)}. The pod's log has the traceback"


def _crashed(error: Exception) -> StageError:
    """Names the kind of error only: its text may quote the data."""
    kind = type(error).__name__
    if isinstance(error, MemoryError) or kind == "OutOfMemoryError":  # the second is torch's, which is not imported here
        message = "memory ran out; lower training.perDeviceBatchSize or training.maxLength, or raise the memory"
        return StageError(Reason.OUT_OF_MEMORY, message)
    return StageError(Reason.CRASHED, f"{kind}; the pod's log has the traceback")


def _end(result: StageResult, code: ExitCode) -> int:
    return _tell(ProcessAnswer(int(code), result.termination_message()))


def _tell(answer: ProcessAnswer) -> int:
    """Gives the pod's answer, or among several processes this one's to the launcher. Returns the exit code."""
    if ANSWERS_VARIABLE in os.environ:
        write_answer(Path(os.environ[ANSWERS_VARIABLE]), _rank(os.environ), answer)
        return answer.code
    log_path = Path(os.environ.get(TERMINATION_LOG, TERMINATION_LOG_FILE))
    if log_path.is_file():  # a pod's log is for people
        log_path.write_text(answer.message)
    else:
        print(answer.message, flush=True)
    return answer.code


if __name__ == "__main__":
    sys.exit(main())
