"""The captioner: images -> features -> beams -> captions, synchronous; on a CPU without torch."""

import sys

# `import openvino` would write into the home directory and tell Google Analytics, whatever the
# environment says. Without its converter it also takes half the time.
for _name in ("openvino_telemetry", "openvino.tools.ovc"):
    sys.modules.setdefault(_name, None)  # type: ignore[arg-type] # None: it cannot be imported
