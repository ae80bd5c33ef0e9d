"""A process supervisor for Trio: start, watch, stream, signal and reap processes.

    async with open_supervisor() as supervisor:
        process = await supervisor.start(ProcessSpec(command="make", args=("-j4",)))
        async for line in process.lines():
            print(line)
        record = await process.wait()

The public names are the ones listed in `__all__`.
"""

from .chunk import Chunk, Offsets, Stream
from .config import SupervisorConfig
from .cursor import Cursor
from .errors import (
    ArgumentListTooLong,
    BadEnvironmentName,
    CgroupsUnavailable,
    CommandIsDirectory,
    CommandNotFound,
    InterpreterNotFound,
    InvalidSignal,
    InvalidText,
    InvalidUser,
    KeyReused,
    KilledBeforeExec,
    LaunchError,
    LimitNotPermitted,
    LimitUnavailable,
    NotExecutable,
    NulByte,
    OutOfDescriptors,
    OutOfMemory,
    OutOfProcesses,
    OutOfResources,
    PermissionDenied,
    PidReused,
    ProcessNotFound,
    ProcessNotRunning,
    SignalNotPermitted,
    SpecError,
    StateDirUnusable,
    StdinNotWritable,
    SupervisorClosed,
    SupervisorError,
    UserNotFound,
    UserNotPermitted,
    WorkingDirNotADirectory,
    WorkingDirNotFound,
)
from .host import Capabilities
from .lines import Gap, Line, LineReader
from .output import OutputLog
from .process import Process
from .record import ExitStatus, ProcessRecord, Reason, RunResult, Status, Usage
from .registry import Retention
from .spec import Limits, OutputMode, OutputPolicy, ProcessSpec, StdinMode, User
from .store import OutputLimits, OutputStore
from .supervisor import Supervisor, open_supervisor

__all__ = [
    "ArgumentListTooLong",
    "BadEnvironmentName",
    "Capabilities",
    "CgroupsUnavailable",
    "Chunk",
    "CommandIsDirectory",
    "CommandNotFound",
    "Cursor",
    "ExitStatus",
    "Gap",
    "InterpreterNotFound",
    "InvalidSignal",
    "InvalidText",
    "InvalidUser",
    "KeyReused",
    "KilledBeforeExec",
    "LaunchError",
    "LimitNotPermitted",
    "LimitUnavailable",
    "Limits",
    "Line",
    "LineReader",
    "NotExecutable",
    "NulByte",
    "Offsets",
    "OutOfDescriptors",
    "OutOfMemory",
    "OutOfProcesses",
    "OutOfResources",
    "OutputLimits",
    "OutputLog",
    "OutputMode",
    "OutputPolicy",
    "OutputStore",
    "PermissionDenied",
    "PidReused",
    "Process",
    "ProcessNotFound",
    "ProcessNotRunning",
    "ProcessRecord",
    "ProcessSpec",
    "Reason",
    "Retention",
    "RunResult",
    "SignalNotPermitted",
    "SpecError",
    "StateDirUnusable",
    "Status",
    "StdinMode",
    "StdinNotWritable",
    "Stream",
    "Supervisor",
    "SupervisorClosed",
    "SupervisorConfig",
    "SupervisorError",
    "Usage",
    "User",
    "UserNotFound",
    "UserNotPermitted",
    "WorkingDirNotADirectory",
    "WorkingDirNotFound",
    "open_supervisor",
]
