"""How things end and stand: exit codes, and the table of every reason that a condition, an event or a stage's answer can have.

One reason has one row: what it means, what a person does about it, which exit code a stage ends with for it, and whether another
attempt follows. docs/reasons.md is generated from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Self


class Retry(StrEnum):
    """Whether another attempt of the stage follows."""

    NEVER = "Never"
    """It would end the same way: a person must change something."""
    COUNTED = "Counted"
    """It follows as long as recovery.maxAttempts allows."""
    UNCOUNTED = "Uncounted"
    """It follows and uses up nothing: the stage did no wrong."""


class ExitCode(IntEnum):
    """What a stage's process ends with. A Job's pod failure policy and the operator's retry policy follow from `retry`."""

    OK = 0
    CRASH = 1
    """An error nobody foresaw; worth another attempt."""
    INVALID_RUN_FILE = 2
    """The pod is not as the operator makes it: the platform's own mistake."""
    INVALID_INPUT = 10
    """Model, data or settings that cannot work: the user must change something."""
    GATE_FAILED = 11
    """Evidence was gathered and says no."""
    DIVERGED = 12
    """A loss or gradient norm was not finite; the last good checkpoint is kept."""
    OUT_OF_MEMORY = 13
    GPU_NOT_VISIBLE = 14
    """The pod was given GPUs and sees none; worth another node."""
    STORAGE = 15
    """Storage full or failing; worth another attempt."""
    PARITY_FAILED = 16
    """An artifact is not what was trained; nothing is published."""
    TERMINATED = 143
    """Stopped by SIGTERM with the work saved; counted only where nobody asked for it."""

    @property
    def retry(self) -> Retry:
        return _RETRY[self]


_RETRY = {
    ExitCode.OK: Retry.NEVER,
    ExitCode.CRASH: Retry.COUNTED,
    ExitCode.INVALID_RUN_FILE: Retry.NEVER,
    ExitCode.INVALID_INPUT: Retry.NEVER,
    ExitCode.GATE_FAILED: Retry.NEVER,
    ExitCode.DIVERGED: Retry.NEVER,
    ExitCode.OUT_OF_MEMORY: Retry.COUNTED,
    ExitCode.GPU_NOT_VISIBLE: Retry.COUNTED,
    ExitCode.STORAGE: Retry.COUNTED,
    ExitCode.PARITY_FAILED: Retry.NEVER,
    ExitCode.TERMINATED: Retry.COUNTED,
}

FINAL_EXIT_CODES = sorted(code for code in ExitCode if code is not ExitCode.OK and code.retry is Retry.NEVER)
"""Codes after which no attempt follows: a Job's pod failure policy names them."""

SIGNALLED = 128
"""What a process that a signal ended exits with, less the signal's number."""


def retry_of(exit_code: int) -> Retry:
    """What follows a pod's exit code. A signal may have any cause; a code unknown to us is an image's own word, and final."""
    if exit_code in _RETRY:
        return ExitCode(exit_code).retry
    return Retry.COUNTED if exit_code >= SIGNALLED else Retry.NEVER


@dataclass(frozen=True)
class Row:
    """What is to be known of a reason.

    `cure`: what a person does about it; empty where nobody needs to. `exit_code`: what a stage ends with for it, from which `retry`
    follows; `retry` alone: a pod ended so without a word of the trainer's.
    """

    name: str
    sentence: str
    cure: str = ""
    exit_code: ExitCode | None = None
    retry: Retry | None = None


def _refused(name: str, sentence: str, cure: str) -> Row:
    """A stage that cannot work with what it was given."""
    return Row(name, sentence, cure, ExitCode.INVALID_INPUT)


class Reason(StrEnum):
    """Every reason of both kinds' conditions and events and of the stages' answers, with its row.

    What the operator reads in an answer or a pod may be none of these: images of the user's own and Kubernetes have their own words.
    """

    sentence: str
    cure: str
    retry: Retry | None
    _exit_code: ExitCode | None

    def __new__(cls, row: Row) -> Self:
        member = str.__new__(cls, row.name)
        member._value_ = row.name
        member.sentence, member.cure, member._exit_code = row.sentence, row.cure, row.exit_code
        member.retry = row.retry if row.exit_code is None else row.exit_code.retry
        return member

    @property
    def ends_a_stage(self) -> bool:
        return self._exit_code is not None

    @property
    def exit_code(self) -> ExitCode:
        """What a stage that ends for this reason exits with. Only where `ends_a_stage`."""
        assert self._exit_code is not None, f"no stage ends with {self}"
        return self._exit_code

    # ------------------------------------------------------------------------------------------------------ the end of any stage
    COMPLETED = Row("Completed", "All that was to be done is done.", exit_code=ExitCode.OK)
    CRASHED = Row("Crashed", "An error that nobody foresaw ended the stage.", "Look at the pod's log.", ExitCode.CRASH)
    OUT_OF_MEMORY = Row(
        "OutOfMemory",
        "The stage needs more memory than it has.",
        "Raise the stage's memory; where it is the GPU's, lower training.perDeviceBatchSize or training.maxLength.",
        ExitCode.OUT_OF_MEMORY,
    )
    TERMINATED = Row("Terminated", "The stage was stopped from outside; what it had saved is kept.", exit_code=ExitCode.TERMINATED)
    INVALID_RUN_FILE = Row(
        "InvalidRunFile",
        "The trainer cannot read what it was told to run.",
        "Use trainer and operator images of one release.",
        ExitCode.INVALID_RUN_FILE,
    )
    CLAIM_NOT_MOUNTED = Row(
        "ClaimNotMounted",
        "A claim that a source names is not mounted in the stage's pod.",
        "Use trainer and operator images of one release.",
        ExitCode.INVALID_RUN_FILE,
    )
    LLAMA_CPP_MISSING = Row(
        "LlamaCppMissing",
        "The trainer image has no llama.cpp.",
        "Use the trainer image of this release, or set FINETUNE_LLAMA_HOME.",
        ExitCode.INVALID_RUN_FILE,
    )
    STORAGE_ERROR = Row(
        "StorageError",
        "The storage is full, failing or not writable.",
        "Free or enlarge it, and let the pod's user read and write there; where it stays, look at the claim and its node.",
        ExitCode.STORAGE,
    )
    CORRUPT_ARTIFACT = Row(
        "CorruptArtifact",
        "A file on the storage is not what was written there.",
        "Restore the file, or delete what the message names to have it made again.",
        ExitCode.STORAGE,
    )
    CORRUPT_MANIFEST = Row(
        "CorruptManifest",
        "A stage's manifest on the storage cannot be read.",
        "Delete it to run the stage again.",
        ExitCode.STORAGE,
    )
    STAGE_MISSING = Row(
        "StageMissing",
        "What a stage before this one had left is not on the storage.",
        "Nothing while the run looks for it and runs again what is gone. Where it ended, see whether the storage keeps what pods write to it "
        "and shows it to the next one; another job runs all stages.",
        ExitCode.STORAGE,
    )
    STORAGE_CONFLICT = _refused(
        "StorageConflict", "The storage holds the same stage of other content.", "Use another prefix, or an empty claim."
    )
    SOURCE_NOT_FOUND = _refused("SourceNotFound", "Nothing is at a source that the spec names.", "Check the path.")
    UNSAFE_PATH = _refused(
        "UnsafePath", "A path leaves the claim or folder that it belongs to.", "Name a plain path inside it, without '..'."
    )
    UNSAFE_FILE = _refused("UnsafeFile", "A folder to be published holds a link.", "Put the file itself in its place.")

    # ---------------------------------------------------------------------------------------------------------- the base model
    MODEL_NOT_FOUND = _refused("ModelNotFound", "No model is where model.source says.", "Check model.source and model.revision.")
    MODEL_GATED = _refused(
        "ModelGated", "The model is gated on the hub.", "Accept its licence there and name a token that may read it (model.tokenSecretRef)."
    )
    MODEL_UNAUTHORIZED = _refused(
        "ModelUnauthorized", "The hub refuses the token for the model.", "Name one that may read it (model.tokenSecretRef)."
    )
    HUB_UNREACHABLE = Row(
        "HubUnreachable",
        "The hub does not answer.",
        "Where it stays, let the prepare pod reach the hub or use a pvc:// source.",
        ExitCode.CRASH,
    )
    INVALID_MODEL = _refused(
        "InvalidModel", "The base model's files are damaged, incomplete or do not fit together.", "Fetch the model again."
    )
    SAFETENSORS_ONLY = _refused(
        "SafetensorsOnly", "The model has pickled weights only, which can run code.", "Convert them to safetensors first."
    )
    QUANTIZED_BASE = _refused(
        "QuantizedBase", "The base model's weights are quantized already.", "Name the unquantized model; set quantization for training."
    )
    ENCODER_DECODER_UNSUPPORTED = _refused(
        "EncoderDecoderUnsupported", "The base model is an encoder-decoder model.", "Use a decoder-only one."
    )
    REMOTE_CODE_REFUSED = _refused(
        "RemoteCodeRefused", "The model needs code of its own repository, which is not run.", "Use an architecture of transformers."
    )
    UNSUPPORTED_ARCHITECTURE = _refused("UnsupportedArchitecture", "The base model generates no text.", "Use a decoder model.")
    BASE_MODEL_CHANGED = _refused(
        "BaseModelChanged", "The base model's files are not those that prepare saw.", "Put them back, or start a new job."
    )
    BASE_MODEL_MISSING = _refused(
        "BaseModelMissing", "The base model is no longer in the storage's cache.", "Create another job, which fetches it again."
    )

    # ------------------------------------------------------------------------------------------------ tokenizer and chat template
    INVALID_TOKENIZER = _refused(
        "InvalidTokenizer", "The tokenizer's files are missing, damaged or disagree.", "Use those of the model's own repository."
    )
    NO_CHAT_TEMPLATE = _refused("NoChatTemplate", "The data holds conversations and there is no chat template.", "Set model.chatTemplate.")
    INVALID_TEMPLATE = _refused("InvalidTemplate", "The chat template cannot be read or does not parse.", "Mend what the message names.")
    HOSTILE_TEMPLATE = _refused("HostileTemplate", "The chat template asks for more than rendering text.", "Use a template that you trust.")
    TEMPLATE_UNSPLITTABLE = _refused(
        "TemplateUnsplittable",
        "The chat template's generation prompt is not how it begins an answer, so serving would differ from training.",
        "Set model.chatTemplate to one where it is.",
    )
    NOT_RENDERED = _refused(
        "NotRendered",
        "The chat template prints nothing of what the data cannot be without, such as calls of tools.",
        "Set model.chatTemplate to one that prints it, or write it into the messages' content.",
    )
    TEMPLATE_TOKENS_MISSING = _refused(
        "TemplateTokensMissing",
        "The chat template ends a turn with text that is no single token of this tokenizer.",
        "Use a template made for this model, or a model that has its tokens.",
    )
    STOP_TOKEN_MISMATCH = _refused(
        "StopTokenMismatch",
        "Answers end with another token than the one at which generation stops.",
        "Make eos_token and eos_token_id name the token that ends an answer.",
    )
    TOKENIZER_MISMATCH = _refused(
        "TokenizerMismatch",
        "llama.cpp tokenises the data otherwise than training does.",
        "Restore the tokenizer's files, or remove export.gguf.",
    )
    UNSUPPORTED_BY_LLAMA_CPP = _refused(
        "UnsupportedByLlamaCpp",
        "llama.cpp does not know the model's tokenizer or architecture.",
        "Remove export.gguf, or use a model it knows.",
    )

    # ---------------------------------------------------------------------------------------------------------------------- data
    DATASET_NOT_FOUND = _refused("DatasetNotFound", "No data is where a data set's source says.", "Check source, split and testSplit.")
    DATASET_GATED = _refused(
        "DatasetGated", "The data set is gated on the hub.", "Accept its terms there and name a token that may read it (tokenSecretRef)."
    )
    DATASET_UNAUTHORIZED = _refused(
        "DatasetUnauthorized", "The hub refuses the token for the data set.", "Name one that may read it (tokenSecretRef)."
    )
    INVALID_DATASET = _refused(
        "InvalidDataset", "The data is not in the form that was declared.", "Mend the row that the message names, or format and columns."
    )
    EMPTY_DATASET = _refused("EmptyDataset", "A data set has no row that can be used.", "Check source and split.")
    NO_TRAINING_ROWS = _refused(
        "NoTrainingRows", "No row is left to train on.", "Add rows, or change preparation.split; the message counts what was dropped."
    )

    # --------------------------------------------------------------------------------------------------------------------- train
    INVALID_ARGUMENT = _refused(
        "InvalidArgument",
        "training.args names an argument that does not exist or that a field of the spec owns, or gives one a value that cannot work.",
        "Remove it, or do what the message says.",
    )
    INVALID_BATCH_SIZE = _refused(
        "InvalidBatchSize",
        "The global batch cannot be split evenly over GPUs and micro-batches.",
        "Make training.globalBatchSize a multiple of what the message names.",
    )
    UNSUPPORTED_PRECISION = _refused(
        "UnsupportedPrecision", "The types of weights and training do not go together here.", "Change training.precision or model.dtype."
    )
    UNSUPPORTED_QUANTIZATION = _refused(
        "UnsupportedQuantization", "Quantized weights cannot be trained themselves.", "Set adapter.type to LoRA."
    )
    UNSUPPORTED_ATTENTION = _refused(
        "UnsupportedAttention", "The model cannot use the attention that was asked for.", "Change model.attentionImplementation."
    )
    SETTINGS_REFUSED = _refused(
        "SettingsRefused",
        "The training library refuses settings that do not go together, or not with this model.",
        "Change the setting that its words in the message are about: training.args, adapter or quantization.",
    )
    UNKNOWN_MODULES = _refused(
        "UnknownModules", "The adapter names modules that the model does not have.", "Choose among those that the message lists."
    )
    UNSUPPORTED_MODULES = _refused(
        "UnsupportedModules",
        "The adapter cannot be put on modules that it names, or could not be merged there afterwards.",
        "Name other modules: linear layers that are single tensors of the checkpoint.",
    )
    DOCUMENTS_LEAK = _refused(
        "DocumentsLeak", "The model's attention would mix rows that are packed together.", "Set training.packing to None."
    )
    GPU_NOT_VISIBLE = Row(
        "GPUNotVisible",
        "The pod was given GPUs and does not see them.",
        "Check the node's driver and device plugin.",
        ExitCode.GPU_NOT_VISIBLE,
    )
    WORLD_TOO_SMALL = Row(
        "WorldTooSmall", "Fewer processes were started than GPUs were given.", "Start the stage with torchrun.", ExitCode.CRASH
    )
    DIVERGED = Row(
        "Diverged",
        "A loss, gradient norm or weight was not finite; the last good checkpoint is kept.",
        "Lower training.learningRate, or look at the data.",
        ExitCode.DIVERGED,
    )
    STOPPED_EARLY = Row("StoppedEarly", "Training ended before its last step.", "Look at the pod's log.", ExitCode.CRASH)
    SUPERSEDED = Row("Superseded", "Another pod of the job has taken the run over; this one publishes nothing.", exit_code=ExitCode.STORAGE)

    # ------------------------------------------------------------------------------------------------------------------- package
    ADAPTER_INVALID = _refused("AdapterInvalid", "The adapter's configuration is missing or cannot be read.", "Train again.")
    ADAPTER_MISMATCH = _refused(
        "AdapterMismatch", "The adapter does not fit the base model or its own configuration.", "Train again on this base model."
    )
    UNSUPPORTED_ADAPTER_VARIANT = _refused(
        "UnsupportedAdapterVariant", "The adapter is of a variant that cannot be merged.", "Train without it."
    )
    CONVERSION_FAILED = _refused(
        "ConversionFailed",
        "llama.cpp could not convert or quantize the model.",
        "Read the end of its log in the message; export another type, or none.",
    )
    GGUF_INVALID = Row(
        "GGUFInvalid",
        "llama.cpp cannot load a GGUF that was made.",
        "Run the stage again on sound storage; where it stays, export another type.",
        ExitCode.PARITY_FAILED,
    )
    NO_ANSWER_POSITIONS = _refused("NoAnswerPositions", "No row has an answer on which parity could be measured.", "Check the data sets.")
    PARITY_FAILED = Row(
        "ParityFailed",
        "An export is not what was trained; nothing is published.",
        "Export a finer type, or set export.parity if the distance is acceptable.",
        ExitCode.PARITY_FAILED,
    )
    DECODING_FAILED = Row("DecodingFailed", "llama.cpp failed while it ran a model.", "Look at the pod's log.", ExitCode.CRASH)
    SERVER_FAILED = Row("ServerFailed", "llama-server did not start or answer.", "Read the end of its log in the message.", ExitCode.CRASH)
    ROW_TOO_LONG = _refused(
        "RowTooLong",
        "A row is longer than the model has positions, or than the context in which it is measured.",
        "Lower training.maxLength.",
    )

    # ------------------------------------------------------------------------------------------------------------------ evaluate
    INVALID_GATE = _refused("InvalidGate", "A gate asks for what cannot be measured of this run.", "Mend the gate that the message names.")
    NOTHING_TO_EVALUATE = _refused(
        "NothingToEvaluate", "The job exports nothing that can be evaluated.", "List a type in export.gguf, or publish the merge."
    )
    PRODUCTION_CHANGED = Row(
        "ProductionChanged",
        "The artifact in production is not the one that was published.",
        "Restore it, or take it out of production.",
        ExitCode.STORAGE,
    )
    GATE_FAILED = Row(
        "GateFailed",
        "A gate says no; the artifacts are kept, nothing is registered.",
        "Read the gate's evidence; train otherwise, or change the gate.",
        ExitCode.GATE_FAILED,
    )
    GATE_INCONCLUSIVE = Row(
        "GateInconclusive",
        "A gate could not be judged; the artifacts are kept, nothing is registered.",
        "Give it more test rows, or change the gate.",
        ExitCode.GATE_FAILED,
    )

    # ------------------------------------------------------------------------------------------ FineTuneJob: before the start
    VALID = Row("Valid", "The spec passed every check.")
    INVALID_SPEC = Row(
        "InvalidSpec",
        "The spec cannot be read; of a ModelVersion in traffic: no version of its model takes a step, and its own pods and traffic stay as they are.",
        "Mend the field that the message names.",
    )
    INVALID_STATUS = Row(
        "InvalidStatus",
        "The status cannot be read: another release or a hand wrote it. Nothing is done for the object meanwhile.",
        "Mend the member that the message names, with the command that it names (kubectl edit … --subresource=status), or delete the object.",
    )
    FORBIDDEN_BY_POLICY = Row(
        "ForbiddenByPolicy",
        "The namespace's policy does not allow what the spec names.",
        "Name what is allowed, or have it added to the chart's policies.",
    )
    CLAIM_NOT_FOUND = Row(
        "ClaimNotFound",
        "A PersistentVolumeClaim that the spec names is not there.",
        "Create it or name another one; the job goes on by itself.",
    )
    CONFIG_MAP_NOT_FOUND = Row(
        "ConfigMapNotFound",
        "A ConfigMap or key that the spec names is not there.",
        "Create it or name another one; the job goes on by itself.",
    )
    CONFIG_MAP_TOO_LARGE = Row(
        "ConfigMapTooLarge",
        "The text that a ConfigMap key holds does not fit into a pod's annotations, by which the run is told.",
        "Shorten it; the message has both sizes.",
    )
    TEMPLATE_LOST = Row(
        "TemplateLost",
        "The chat template that the run was started with is neither in its ConfigMap nor in an earlier pod any more.",
        "Put it back, or create another job.",
    )
    STORAGE_CLASS_NOT_FOUND = Row(
        "StorageClassNotFound",
        "The StorageClass that spec.storage names is not there.",
        "Name one that is there, or create it; the job goes on by itself.",
    )
    OLDER_JOB_NOT_FOUND = Row("OlderJobNotFound", "The job that spec.resumeFrom names is not there.", "Name one of this namespace.")
    VERSION_TAKEN = Row(
        "VersionTaken", "Another run made the version that spec.publish.version asks for.", "Name another version, or leave it out."
    )
    ALREADY_PUBLISHED = Row(
        "AlreadyPublished",
        "A version was made by a run of the same content; nothing was run.",
        "Nothing; to run it again, set spec.runId on a new object.",
    )
    SPEC_CHANGED = Row("SpecChanged", "The spec is not what was started, and pods of that have run.", "Put it back, or create another job.")

    # ---------------------------------------------------------------------------------------------- FineTuneJob: while it runs
    STARTED = Row("Started", "The run has begun.")
    STARTED_ANEW = Row("StartedAnew", "The spec changed before any pod of the run was there; it is checked and started as it is now.")
    PREPARED_PENDING = Row("PreparedPending", "Stage prepare is due or under way.")
    TRAINED_PENDING = Row("TrainedPending", "Stage train is due or under way.")
    PACKAGED_PENDING = Row("PackagedPending", "Stage package is due or under way.")
    EVALUATED_PENDING = Row("EvaluatedPending", "Stage evaluate is due or under way.")
    PUBLISHED_PENDING = Row("PublishedPending", "The result is about to be registered as a ModelVersion.")
    RUNNING = Row("Running", "The stage is under way.")
    STAGE_WARNING = Row("StageWarning", "A stage found something to mind and went on.", "Look at status.warnings.")
    RETRYING = Row("Retrying", "An attempt failed; another follows.")
    RESULT_SOUGHT = Row(
        "ResultSought",
        "The claim came back, or a later stage did not find what this one had left: it is looked for on the storage, and made anew where it is gone.",
    )
    STOPPING = Row("Stopping", "A pod is being stopped and saves its work.")
    SUSPENDING = Row("Suspending", "Pods are being stopped for spec.suspend and save their work.")
    SUSPENDED = Row(
        "Suspended", "spec.suspend is true; what was done is on storage.", "Set spec.suspend to false to go on.", retry=Retry.UNCOUNTED
    )
    NOT_SUSPENDED = Row("NotSuspended", "spec.suspend is false.")
    RESUMED = Row("Resumed", "spec.suspend is false again; the run goes on.")
    FORMER_POD_ALIVE = Row(
        "FormerPodAlive",
        "A pod of an attempt before still runs; the next one starts when it has ended.",
        "Nothing; where it should not go on, delete it as the message says.",
    )
    POD_REFUSED = Row(
        "PodRefused", "The API server refuses to create the stage's pod.", "Mend what the message names: a quota, or Pod Security."
    )
    VOLUME_ELSEWHERE = Row(
        "VolumeElsewhere",
        "The volume of the run's claim lies where the stage's pod cannot run.",
        "Create another job whose stages may all run on the same nodes, or on storage that all nodes reach.",
    )
    CLAIM_LOST = Row(
        "ClaimLost",
        "The claim with the run's files is gone, or has lost its volume.",
        "Restore it under its name, and the run goes on; else create another job.",
    )
    UNSCHEDULABLE = Row("Unschedulable", "No node has room for the stage's pod.", "Make room, or change what the stage asks for.")
    NODE_LOST = Row(
        "NodeLost",
        "The node of the stage's pod is gone.",
        "Nothing where the next attempt starts; else bring the node back or free the pod, as the message says.",
        retry=Retry.UNCOUNTED,
    )

    # --------------------------------------------------------------- FineTuneJob: a pod ended without a word of the trainer's
    PREEMPTED = Row("Preempted", "The pod was preempted, evicted or drained.", retry=Retry.UNCOUNTED)
    POD_REJECTED = Row(
        "PodRejected",
        "The node turned the stage's pod away before anything ran.",
        "Nothing where the next attempt starts; else look at the node (devices, disk, taints), which the message names.",
        retry=Retry.UNCOUNTED,
    )
    KILLED = Row("Killed", "A signal ended the stage's process.", "Look at the pod's log and the node's.", retry=Retry.COUNTED)
    POD_FAILED = Row("PodFailed", "The pod failed without an exit code.", "Look at the message and the node.", retry=Retry.COUNTED)
    STAGE_FAILED = Row(
        "StageFailed",
        "The stage ended with a final exit code and said nothing, or with one that the trainer does not have.",
        "Look at the pod's log.",
        retry=Retry.NEVER,
    )
    ANSWER_UNREADABLE = Row(
        "AnswerUnreadable",
        "The stage ended well, but its answer cannot be read, also when asked again.",
        "Use a trainer image of this release as spec.image.",
        retry=Retry.NEVER,
    )

    # ---------------------------------------------------------------------------------------------------- FineTuneJob: the end
    REGISTERING = Row("Registering", "A version number is reserved.")
    REGISTERED = Row("Registered", "The result is registered as a ModelVersion.")
    PUBLISHED = Row("Published", "The result is registered as a ModelVersion.")
    ARTIFACTS_UNKNOWN = Row(
        "ArtifactsUnknown",
        "Stage package told of no artifacts, so there is nothing to register.",
        "Look for its files where the message says.",
    )
    DEADLINE_EXCEEDED = Row(
        "DeadlineExceeded",
        "The run was active for longer than spec.activeDeadlineSeconds; its checkpoints are kept.",
        "Start a new job with spec.resumeFrom and a longer deadline.",
        retry=Retry.NEVER,
    )
    SUCCEEDED = Row("Succeeded", "The run is done.")
    FAILED = Row("Failed", "The run is over without a result; the event's message begins with the reason.", "See that reason.")

    # ----------------------------------------------------------------------------------------------------------- both kinds
    WAITING = Row("Waiting", "Something else comes first; the message says what.")
    SETTLED = Row("Settled", "What is wanted is the case.")
    NOT_STALLED = Row("NotStalled", "No person is needed.")
    APPLIED = Row("Applied", "Every object is as wanted.")
    NOT_OWNED = Row("NotOwned", "An object of the wanted name belongs to somebody else.", "Delete or rename it.")
    WAITING_FOR_PREVIOUS_OWNER = Row("WaitingForPreviousOwner", "A former object of the wanted name is still being deleted.")
    FORBIDDEN = Row("Forbidden", "The API server forbids what is wanted.", "Grant it, or mend what the message names.")
    INVALID = Row("Invalid", "The API server finds an object invalid.", "Mend what the message names.")
    QUOTA_EXCEEDED = Row("QuotaExceeded", "A quota leaves no room.", "Free some of it, or raise it.")
    API_ERROR = Row("ApiError", "The API server failed; it is tried again.")

    # ------------------------------------------------------------------------------------------------------ ModelVersion: serving
    SERVING = Row("Serving", "At least one pod of the version answers.")
    PODS_STARTING = Row("PodsStarting", "No pod of the version answers yet.")
    PODS_NOT_READY = Row("PodsNotReady", "No pod of the version answers any more.")
    PODS_CANNOT_START = Row(
        "PodsCannotStart", "The pods cannot be created, scheduled or started.", "Mend what the message names in the cluster's words."
    )
    DEPLOYMENT_PAUSED = Row(
        "DeploymentPaused",
        "Somebody paused the version's Deployment, and a change of its pods waits for that.",
        "Let it go on with: kubectl rollout resume deployment/<version>.",
    )
    DIGEST_MATCHES = Row("DigestMatches", "A server read the artifact and found the digest that was published.")
    NOT_READ_YET = Row("NotReadYet", "No server has read the artifact yet.")
    ARTIFACT_REFUSED = Row(
        "ArtifactRefused",
        "The server refused the artifact: it has another digest, or cannot be read.",
        "Restore the artifact, or publish another version.",
    )
    CLAIM_BOUND = Row("ClaimBound", "The claim that holds the artifact is there.")
    CLAIM_MISSING = Row("ClaimMissing", "The claim that holds the artifact is not there.", "Restore it: its volume holds the artifact.")
    CLAIM_NOT_BOUND = Row(
        "ClaimNotBound",
        "A claim that a pod needs has no volume.",
        "Look at the claim's events and StorageClass; a version's claim must be bound to the volume of its artifact.",
    )
    CLAIM_NOT_SHAREABLE = Row(
        "ClaimNotShareable",
        "The claim's access mode does not let the server pods use it where they can run.",
        "Publish to a claim with ReadWriteMany or ReadOnlyMany.",
    )
    ARTIFACT_MISSING = Row(
        "ArtifactMissing", "serving.artifact names no GGUF among the artifacts.", "Name one of those that the message lists."
    )
    DUPLICATE_VERSION = Row(
        "DuplicateVersion",
        "The name is not <model>-v<version>, so two objects could claim the number.",
        "Create the version under that name, and delete this one.",
    )

    # ------------------------------------------------------------------------------------------------------ ModelVersion: traffic
    ACCEPTED = Row("Accepted", "The Gateway accepted the route as it is now.")
    NOT_ROUTED = Row("NotRouted", "Traffic of type None: the version is reached through its Service.")
    NO_TRAFFIC_YET = Row("NoTrafficYet", "The version is not in the route before its pods are ready.")
    WAITING_FOR_GATEWAY = Row("WaitingForGateway", "The Gateway has not answered for the route as it is now.")
    ROUTE_NOT_ACCEPTED = Row("RouteNotAccepted", "The Gateway refused the route.", "Mend what the message has in the Gateway's words.")
    GATEWAY_SILENT = Row(
        "GatewaySilent",
        "Nobody has answered for the Gateway that the route names, or not for the route as it is now.",
        "Look whether that Gateway exists, takes routes from this namespace, and has a controller that runs.",
    )
    HOSTNAMES_TAKEN = Row(
        "HostnamesTaken",
        "The route of another model on the same Gateway has the same host names: one of the two would get no requests.",
        "Give each model host names of its own in spec.rollout.traffic.gatewayAPI.hostnames.",
    )
    ROUTE_PUT_RIGHT = Row(
        "RoutePutRight",
        "Somebody changed what belongs to the operator in the HTTPRoute; it was put right.",
        "Change spec.rollout instead; filters, timeouts and the like of the rule may be set, and rules of one's own in another HTTPRoute.",
    )
    GATEWAY_API_MISSING = Row("GatewayAPIMissing", "The cluster does not serve HTTPRoutes.", "Install the Gateway API and a Gateway.")
    SERVER_PUT_RIGHT = Row(
        "ServerPutRight",
        "Somebody changed what belongs to the operator in a version's Deployment or Service; it was put right.",
        "Change spec.serving instead; containers, volumes, node labels and the like may be added beside what is there, and are kept.",
    )
    DIFFERS_FROM_PRODUCTION = Row(
        "DiffersFromProduction",
        "rollout.traffic is not the same as that of the version which the route follows.",
        "Make them equal, or leave the version without traffic.",
    )
    NOBODY_RETURNS = Row(
        "NobodyReturns",
        "rollout.abort is set on the version in production, and no former one can return: it stays until another takes over.",
        "Unset it, or publish another version; to take the model out of service, set spec.lifecycle to Retired.",
    )
    STARTING = Row("Starting", "Waits for its pods before the first step.")
    WEIGHT_TAKEN = Row(
        "WeightTaken",
        "The weights of all candidates together would leave nothing for the version in production.",
        "Wait for the others, lower a step's weight, or abort one.",
    )
    HOLDING = Row("Holding", "In a step whose hold is not over.")
    AWAITING_APPROVAL = Row(
        "AwaitingApproval", "rollout.approval is Manual and the step is not approved.", "Set spec.rollout.approvedStep to let it go on."
    )
    PAUSED = Row("Paused", "rollout.paused is set.", "Unset it to let the version go on.")
    OUT_OF_SERVICE = Row("OutOfService", "Archived, rolled back or rejected: gets no traffic.")
    MOVING_TRAFFIC = Row("MovingTraffic", "The route's weights are on their way to what is wanted.")
    ROLLING_OUT = Row("RollingOut", "Pods of another template are replacing the present ones.")
    RETIRING = Row("Retiring", "Out of service; its pods are about to go.")
