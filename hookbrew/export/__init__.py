"""The student of a run in files that need no hookbrew: written, reloaded in a fresh process, compared, described.

    exported = hookbrew.export.export("runs/sms", "sms-student", format="onnx")

One module a step: `source` opens the run, `written`, `traced` and `spelling` make the files and say how they load,
`verify` runs that in a process of its own (`fresh`, which never imports hookbrew), `card` tells it all.
"""

from __future__ import annotations

from hookbrew.export.run import FORMATS, Exported, export

__all__ = ["FORMATS", "Exported", "export"]
